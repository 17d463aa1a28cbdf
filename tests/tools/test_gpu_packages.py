"""What the images for GPUs install on top of the slim ones, and what their build says of the library that only NVIDIA's package index has.

The script is the real one. Programs that would download something are replaced by ones that write down what they were asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = """onnxruntime-gpu==1.31.1 \\
    --hash=sha256:aa
tensorrt-cu12==11.4.0 \\
    --hash=sha256:bb
tensorrt-cu12-libs==11.4.0 \\
    --hash=sha256:cc
tensorrt-rtx-cu12==1.7.1 \\
    --hash=sha256:dd
"""
ALWAYS = ["onnxruntime-gpu==1.31.1", "--hash=sha256:aa", "tensorrt-rtx-cu12==1.7.1", "--hash=sha256:dd"]
GENERAL = ["tensorrt-cu12==11.4.0", "--hash=sha256:bb", "tensorrt-cu12-libs==11.4.0", "--hash=sha256:cc"]
# pip puts uv where it is told to. uv keeps what it is asked to install, and fails as the real one does without NVIDIA's index.
PIP = """#!/bin/sh
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/bin"
cp "$(dirname "$0")/uv" "$2/bin/uv"
"""
UV = """#!/bin/sh
shift
case $1 in
  uninstall) echo "$4" >>"$ASKED/uninstalled" ;;
  install)
    while [ "$1" != -r ]; do shift; done
    if [ "$REACHED" = no ] && grep -q '^tensorrt-cu12' "$2"; then exit 1; fi
    cat "$2" >>"$ASKED/installed" ;;
esac
"""


class Build:
    """The layer of a Dockerfile in which the script runs, in a folder."""

    def __init__(self, folder: Path, *packages: str) -> None:
        self.folder = folder
        self.site = folder / "fettle/lib/python3.11/site-packages"
        for package in ("onnxruntime", *packages):
            (self.site / package / "include").mkdir(parents=True)
            (self.site / package / "__init__.py").write_text("")
        for place, content in (("path/pip", PIP), ("path/uv", UV)):
            self._program(place, content)
        self._program("fettle/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / "gpu.txt").write_text(LOCK)

    def _program(self, place: str, content: str) -> None:
        (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / place).write_text(content)
        (self.folder / place).chmod(0o755)

    def run(self, tensorrt: str, reached: str = "yes") -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.folder / 'path'}:{os.environ['PATH']}",
            "FETTLE": str(self.folder / "fettle"),
            "TMPDIR": str(self.folder),
            "ASKED": str(self.folder),
            "REACHED": reached,
            "TENSORRT": tensorrt,
        }
        script = ROOT / "docker" / "gpu-packages.sh"
        command = ["sh", str(script), str(self.folder / "gpu.txt")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def asked(self, name: str) -> list[str]:
        return (self.folder / name).read_text().replace("\\\n", "").split()


def test_without_nvidias_index_an_image_has_all_but_its_general_library_and_the_build_says_so(tmp_path: Path) -> None:
    build = Build(tmp_path)
    done = build.run("0", reached="no")
    assert done.returncode == 0, done.stderr
    assert build.asked("installed") == ALWAYS
    assert build.asked("uninstalled") == ["onnxruntime"]
    assert [line for line in done.stdout.splitlines() if "TensorRT" in line] == [
        "Without TensorRT: the runtime tensorrt needs --build-arg TENSORRT=1, and a connection to NVIDIA's package index. The others need neither."
    ]


def test_asked_for_the_general_library_an_image_has_it_too(tmp_path: Path) -> None:
    build = Build(tmp_path)
    assert build.run("1").returncode == 0
    assert build.asked("installed") == [*ALWAYS, *GENERAL]


def test_where_the_general_library_cannot_be_fetched_the_last_line_says_what_it_needs(tmp_path: Path) -> None:
    done = Build(tmp_path).run("1", reached="no")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "TensorRT cannot be installed: TENSORRT=1 needs a connection to NVIDIA's"
    )


@pytest.mark.parametrize("packages", [(), ("torch", "onnxscript", "sympy")], ids=["without PyTorch", "with PyTorch"])
def test_what_was_installed_is_compiled_and_nothing_is_left_that_only_compilers_need(
    packages: tuple[str, ...], tmp_path: Path
) -> None:
    build = Build(tmp_path, *packages)
    done = build.run("0")
    assert done.returncode == 0, done.stderr
    assert all(list((build.site / package / "__pycache__").glob("*.pyc")) for package in ("onnxruntime", *packages))
    assert not (build.site / "torch" / "include").exists()
    assert not list(tmp_path.glob("tmp.*")), "what installed the packages is gone"
