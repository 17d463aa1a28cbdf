"""A toolchain's virtual environment: locked with hashes, made once, made again when its lock or the Python changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.toolchains.toolchain import Toolchain, ToolchainError

UV = Path(sys.executable).parent / "uv"
TEST_TOOLS = ("hypothesis", "pytest", "pytest-asyncio", "pytest-timeout")
# PyTorch's package asks for them on x86_64; on a CPU it does without (tools/torch_on_cpu.py).
_NVIDIA = (
    *("triton", "cuda-bindings", "cuda-pathfinder", "cuda-toolkit", "nvidia-nvshmem-cu13"),
    *(f"nvidia-{name}" for name in ("cublas", "cudnn-cu13", "cufft", "cufile", "curand", "cusolver", "cusparse")),
    *(f"nvidia-{name}" for name in ("cusparselt-cu13", "nccl-cu13", "nvjitlink", "nvtx")),
    *(f"nvidia-cuda-{name}" for name in ("cccl", "cupti", "nvrtc", "runtime")),
)

Progress = Callable[[str], None]


def lock(toolchain: Toolchain) -> None:
    """Solve what the toolchain needs and write its lock. Raises ToolchainError with the solver's reason."""
    toolchain.lock.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        wanted, overrides, alone = (Path(temporary, f"{name}.txt") for name in ("wanted", "overrides", "alone"))
        wanted.write_text("\n".join((*toolchain.requirements, *TEST_TOOLS)) + "\n")
        overrides.write_text("\n".join(toolchain.overrides) + "\n")
        alone.write_text("\n".join(toolchain.alone) + "\n")
        words: list[str | Path] = ["--override", overrides]
        words += [word for extra in toolchain.extras for word in ("--extra", extra)]
        words += ["--constraint", toolchain.root / "requirements" / "dev.txt"] if toolchain.constrained else []
        words += [word for name in _NVIDIA if toolchain.torch for word in ("--no-emit-package", name)]
        words += [toolchain.root / "pyproject.toml"] if toolchain.extras else []
        locked = _compiled(toolchain, *words, wanted)
        if toolchain.alone:
            locked += _compiled(toolchain, "--no-header", "--no-deps", alone)
    toolchain.lock.write_text(locked)


def _compiled(toolchain: Toolchain, *words: str | Path) -> str:
    """Pinned versions with hashes, one Python's."""
    options = ("--quiet", "--generate-hashes", "--python-version", "3.11", "--no-emit-index-url", "--no-annotate")
    command = f"python -m tools.toolchains lock {toolchain.name}"
    return _uv("pip", "compile", *options, *words, UV_CUSTOM_COMPILE_COMMAND=command)


def make(toolchain: Toolchain, progress: Progress) -> Path:
    """The interpreter of the toolchain's environment, which is made where it is not there as its lock says. Raises ToolchainError."""
    if not toolchain.lock.exists():
        raise ToolchainError(f"{toolchain.lock} is missing: python -m tools.toolchains lock {toolchain.name}")
    folder, content = toolchain.environment, digest(toolchain)
    stamp, interpreter = folder / "stamp", folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == content and interpreter.exists():
        progress("the environment is there")
        return interpreter
    packages = sum(line[:1].isalnum() for line in toolchain.lock.read_text().splitlines())
    progress(f"installing {packages} packages in {folder.relative_to(toolchain.root)}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _uv("venv", "--quiet", "--python", sys.executable, folder)
    # The lock is the whole list: nothing is resolved again, so what it leaves out stays out.
    _uv("pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", toolchain.lock, VIRTUAL_ENV=str(folder))
    if toolchain.torch:
        packages_folder = next((folder / "lib").glob("python*/site-packages"))
        _run((interpreter, toolchain.root / "tools" / "torch_on_cpu.py", packages_folder), {})
    stamp.write_text(content)
    progress("installed")
    return interpreter


def digest(toolchain: Toolchain) -> str:
    """Of all that an environment follows from: its lock, the Python, and whether PyTorch's stand-ins belong to it."""
    parts = (toolchain.lock.read_bytes(), sys.version.encode(), str(toolchain.torch).encode(), bytes(toolchain.root))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _uv(*words: str | Path, **environment: str) -> str:
    if not UV.exists():
        raise ToolchainError(f"{UV} is missing: make setup")
    return _run((UV, *words), {"UV_SYSTEM_CERTS": "1", **_index(), **environment})


def _index() -> dict[str, str]:
    """What pip is told about its index holds for uv as well."""
    if os.environ.get("UV_DEFAULT_INDEX"):
        return {}
    asked = subprocess.run(
        (sys.executable, "-m", "pip", "config", "get", "global.index-url"), check=False, capture_output=True, text=True
    )
    index = os.environ.get("PIP_INDEX_URL") or asked.stdout.strip()
    return {"UV_DEFAULT_INDEX": index} if index else {}


def _run(words: tuple[str | Path, ...], environment: Mapping[str, str]) -> str:
    """Run a command to its end; what it printed. Raises ToolchainError with what it said last."""
    done = subprocess.run(
        [str(word) for word in words], check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ToolchainError(f"{Path(words[0]).name} {words[1]}: {said[-1200:] or f'exit status {done.returncode}'}")
    return done.stdout
