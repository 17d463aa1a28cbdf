"""A peer's own environment, where it needs other packages than the locked one: a virtual environment below .cache, made once."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).parent / "requirements"
ENVIRONMENTS = ROOT / ".cache" / "bench-optimize" / "environments"


class EnvironmentFailure(Exception):
    """An environment could not be made; the message says why."""


def python(name: str) -> Path:
    """The interpreter with `requirements/NAME.txt`, installed when it was not yet. Every package is listed there: nothing is resolved.

    Raises EnvironmentFailure.
    """
    if not name:
        return Path(sys.executable)
    requirements, folder = REQUIREMENTS / f"{name}.txt", ENVIRONMENTS / name
    stamp, made = folder / "stamp", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != made:
        shutil.rmtree(folder, ignore_errors=True)
        _install(requirements, folder)
        stamp.write_text(made)
    return folder / "bin" / "python"


def _install(requirements: Path, folder: Path) -> None:
    interpreter = folder / "bin" / "python"
    pip = (interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    command(sys.executable, "-m", "venv", folder)
    command(*pip, "-r", requirements)
    if "\ntorch==" in requirements.read_text():
        packages = next((folder / "lib").glob("python*/site-packages"))
        command(interpreter, ROOT / "tools" / "torch_on_cpu.py", packages)


def command(*words: str | Path) -> None:
    """Run a command to its end. Raises EnvironmentFailure with what it said last."""
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentFailure(f"its environment cannot be made: {last_words(done)}")


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a command printed, of its complaints where there are some."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
