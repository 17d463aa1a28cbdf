"""The memory that measuring is going to need: each process as much as its runtime and its model take."""

from __future__ import annotations

import pytest

from fettle.api import catalog
from fettle.api.memory import GROUP, JOB_BYTES, job_bytes, process_bytes
from fettle.api.recipe import RuntimeSettings
from fettle.api.task import BuiltCandidate, CandidatePlan, StoredFile, StoredModel
from fettle.api.vocabulary import RuntimeName

MIB = 1 << 20


def candidate(runtime: RuntimeName, size: int) -> BuiltCandidate:
    """A model of so many bytes."""
    plan = CandidatePlan(name="a", recipe="a", runtime=runtime, settings=RuntimeSettings())
    model = StoredModel(format="ONNX", entry="model", files=(StoredFile(path="model", sha256="0" * 64, bytes=size),))
    return BuiltCandidate(plan=plan, model=model)


@pytest.mark.parametrize("runtime", RuntimeName)
def test_a_process_takes_what_its_own_runtime_takes_and_three_copies_of_the_model(runtime: RuntimeName) -> None:
    assert process_bytes(candidate(runtime, 7 * MIB)) == catalog.runtime(runtime).process_bytes + 21 * MIB


def test_torch_takes_more_than_what_serves_without_it() -> None:
    small, large = (catalog.runtime(name).process_bytes for name in (RuntimeName.ONNXRUNTIME, RuntimeName.TORCHSCRIPT))
    assert large > 380 * MIB > 2 * small, "380 MiB were measured with an exported program of one layer"


def test_a_job_holds_the_baseline_and_those_that_take_most_beside_it() -> None:
    # A small model in torch takes more than a larger one in OpenVINO: those that count are not those with most bytes.
    torch, openvino = candidate(RuntimeName.TORCHSCRIPT, MIB), candidate(RuntimeName.OPENVINO, 50 * MIB)
    loaded = process_bytes(torch) + GROUP * process_bytes(torch)
    assert job_bytes(torch, [*[openvino] * 9, *[torch] * GROUP], 92 * MIB) == JOB_BYTES + 92 * MIB + loaded
