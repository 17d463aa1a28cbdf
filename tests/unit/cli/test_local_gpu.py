"""Local runs with targets that need a GPU: what this machine has is known before any work."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.plan.optimize.world import make_spec
from tests.unit.runtimes.fake_cuda import FakeCuda

from fettle.cli.local.devices import on_this_machine
from fettle.errors import UsageError
from fettle.runtimes import cuda

CPU = {"name": "cpu"}


def here(monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda | None) -> None:
    def connect() -> Any:
        if gpu is None:
            raise cuda.no_device("no CUDA-capable device is detected")
        return gpu

    monkeypatch.setattr(cuda, "connect", connect)


@pytest.mark.parametrize(
    "target",
    [
        {"device": {"kind": "nvidia"}},
        {"device": {"kind": "nvidia", "architecture": "sm89"}},
        {"resources": {"limits": {"nvidia.com/gpu": 1}}},
    ],
)
def test_a_target_gets_the_architecture_of_this_machines_gpu(
    target: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeCuda("sm89")
    here(monkeypatch, gpu)
    on_cpu, on_gpu = on_this_machine(make_spec(targets=[CPU, {"name": "gpu", **target}])).targets
    assert on_cpu.device is None
    assert on_gpu.device is not None
    assert on_gpu.device.architecture == "sm89"
    assert gpu.calls == [], "nothing is put on the GPU"


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        (None, "target l4 needs an NVIDIA GPU, which this machine lacks: .*no CUDA-capable device is detected"),
        (FakeCuda("sm75"), r"target l4 needs a GPU of sm89, and this machine's \(NVIDIA Fake\) is sm75"),
    ],
    ids=["no GPU", "another GPU"],
)
def test_a_gpu_that_this_machine_lacks_ends_a_local_run_before_any_work(
    gpu: FakeCuda | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, gpu)
    spec = make_spec(targets=[CPU, {"name": "l4", "device": {"kind": "nvidia", "architecture": "sm89"}}])
    with pytest.raises(UsageError, match=told):
        on_this_machine(spec)


def test_a_gpu_that_is_too_old_ends_a_local_run_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, FakeCuda("sm70"))
    with pytest.raises(UsageError, match=r"target gpu needs a GPU from sm75 on, and this machine's .* is sm70"):
        on_this_machine(make_spec(targets=[{"name": "gpu", "device": {"kind": "nvidia"}}]))


def test_without_a_target_for_a_gpu_nobody_looks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, None)
    spec = make_spec(targets=[CPU])
    assert on_this_machine(spec) == spec
