"""A copy of the package that a test changes as docs/design/where.md says, and runs."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import cache_from_source
from pathlib import Path

import fettle

SOURCE = Path(inspect.getfile(fettle)).parent
TESTS = Path(__file__).parents[1]  # what runs in the copy may use helpers of the tests


class PackageCopy:
    """A copy of the package that can be changed and run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(SOURCE, folder / "fettle", ignore=shutil.ignore_patterns("__pycache__"))
        # Bytecode holds for a file of the same time and size, and compiling takes seconds.
        for file in SOURCE.rglob("*.py"):
            made = Path(cache_from_source(str(file)))
            if made.exists():
                kept = Path(cache_from_source(str(folder / "fettle" / file.relative_to(SOURCE))))
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made, kept)

    def add(self, path: str, text: str) -> None:
        """A new file."""
        assert not (self.folder / "fettle" / path).exists()
        (self.folder / "fettle" / path).write_text(text)

    def enter(self, path: str, behind: str, text: str) -> None:
        """An entry in a list that is there."""
        file = self.folder / "fettle" / path
        before = file.read_text()
        assert before.count(behind) == 1, f"{path} has {behind!r} {before.count(behind)} times"
        file.write_text(before.replace(behind, behind + text))

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Python with this copy of the package, and the tests' helpers."""
        path = os.pathsep.join(map(str, (self.folder, TESTS)))
        env: Mapping[str, str] = os.environ | {"PYTHONPATH": path} | environment
        return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)
