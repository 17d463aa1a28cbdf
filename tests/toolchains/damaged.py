"""Damaged files of a source format, and what preparing says of each. A process of its own reads them: a library may crash on one.

python -m tests.toolchains.damaged FOLDER FILE...    # a line of JSON for each file
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SEEDS = range(12)
PREPARED, CRASHED = "Prepared", "Crashed"
# What a damaged file may end with. One whose weights were changed is a model like any other.
REASONS = {
    "SourceCorrupted",
    "UnsupportedFormat",
    "UnsupportedModel",
    "UnsupportedOperator",
    "UnsafePickle",
    "UnsafeCode",
}
REASONS |= {"OutputsInvalid", "NumericalMismatch", "SourceNotFound", "InvalidSpec", "DataInvalid", PREPARED, CRASHED}


def damaged(whole: bytes, header: bytes) -> dict[str, bytes]:
    """Damaged forms of a file by name. `header`: a beginning that promises the format, and lies."""
    made = {
        "empty": b"",
        "header-alone": header,
        "header-and-zeros": header + bytes(4096),
        "text": header + b"hello " * 100,
    }
    for share in (0.05, 0.5, 0.95):
        made[f"cut-at-{share}"] = whole[: int(len(whole) * share)]
    made["without-the-last-byte"] = whole[:-1]
    made["twice"] = whole + whole
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        changed = np.frombuffer(whole, np.uint8).copy()
        places = random.integers(0, len(whole), 1 + seed)
        changed[places] ^= random.integers(1, 256, len(places)).astype(np.uint8)
        made[f"flipped-{seed}"] = changed.tobytes()
    return made


def outcomes(folder: Path, files: Sequence[str]) -> dict[str, tuple[str, str]]:
    """By file, a reason and a message: of what was prepared, PREPARED; where the process died of it, CRASHED."""
    found: dict[str, tuple[str, str]] = {}
    waiting = list(files)
    while waiting:
        words = [sys.executable, "-m", "tests.toolchains.damaged", str(folder), *waiting]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, env=os.environ)
        said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found |= {line["file"]: (line["reason"], line["message"]) for line in said}
        waiting = [name for name in waiting if name not in found]
        if waiting:
            assert done.returncode < 0, f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
            found[waiting.pop(0)] = (CRASHED, done.stderr[-500:])
    return found


def _main(folder: Path, files: Sequence[str]) -> None:
    from tests.unit.optimizer.prepare.workbench import Workbench

    from fettle.api.source import SourceSpec
    from fettle.errors import FettleError

    for name in files:
        reason, message = PREPARED, ""
        with tempfile.TemporaryDirectory() as claim:
            bench = Workbench(Path(claim))
            copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
            copy(folder / name, bench.folder / name)
            try:
                bench.prepare(bench.task(source=SourceSpec(uri=f"pvc://claim/{name}")))
            except FettleError as error:
                reason, message = error.reason.value, error.message
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                reason, message = "internal", f"{type(error).__name__}: {error}"
        print(json.dumps({"file": name, "reason": reason, "message": message}), flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
