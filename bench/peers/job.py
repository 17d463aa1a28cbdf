"""What a peer gets, and what it writes. Nothing here but numpy: it is imported in environments that lack Fettle.

A peer is a module of `bench/peers`, run as `python -m bench.peers.NAME JOB` in a process of its own. JOB is a folder:

    job.json         the fields of `Job`
    calibration.npz  items without labels, an array per input, items along the first axis
    evaluation.npz   more of them, which a flow may tune on; held-out items no peer ever sees
    out/             for the peer's files; `answer.json` there says which of them to run, and with what
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Job:
    """`model`: an ONNX file. `max_drop`: what the metric may lose. `evaluation`: Fettle's EvaluationSpec as JSON, `signature` likewise."""

    folder: Path
    model: Path
    threads: int
    max_drop: float
    signature: dict[str, Any]
    evaluation: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """Where the peer's files go."""
        return self.folder / "out"

    def feeds(self, name: str = "calibration") -> list[Feed]:
        """One run's inputs for each item of `name`.npz: a batch of one."""
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        return list(_feeds(arrays))

    def answer(self, entry: str, runtime: str, precision: str = "Float32") -> None:
        """Say that `entry`, a file in `out`, is to be run with `runtime` (onnxruntime or openvino) in `precision`."""
        said = {"entry": entry, "runtime": runtime, "precision": precision}
        (self.out / "answer.json").write_text(json.dumps(said))


def _feeds(arrays: Feed) -> Iterator[Feed]:
    for index in range(len(next(iter(arrays.values())))):
        yield {name: array[index : index + 1] for name, array in arrays.items()}


def read() -> Job:
    """The job that the command line names."""
    parser = argparse.ArgumentParser(description="Quantize one model as this tool's own flow does.")
    parser.add_argument("job", type=Path, help="folder with job.json")
    folder = parser.parse_args().job
    content = json.loads((folder / "job.json").read_text())
    job = Job(folder=folder, **content | {"model": Path(content["model"])})
    job.out.mkdir(exist_ok=True)
    return job
