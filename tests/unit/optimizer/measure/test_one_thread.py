"""An original that is no candidate is timed with as many threads as it is fast with."""

from __future__ import annotations

import pytest
from tests.unit.optimizer.measure.simulated import World, steady

from fettle.api.recipe import RuntimeSettings
from fettle.api.task import BuiltCandidate, CandidatePlan, StoredModel
from fettle.api.vocabulary import FormatName, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure.clock import BASELINE
from fettle.optimizer.measure.one_thread import NAME, gain, with_one_thread
from fettle.optimizer.measure.protocol import Block, Runs


def original(threads: int, runtime: RuntimeName = RuntimeName.TORCHSCRIPT) -> BuiltCandidate:
    settings = RuntimeSettings(threads=threads)
    plan = CandidatePlan(name="original", recipe="original", runtime=runtime, settings=settings, untouched=True)
    return BuiltCandidate(plan=plan, model=StoredModel(format=FormatName.TORCH_SCRIPT, entry="model.pt", files=()))


def test_an_original_with_several_threads_may_have_one() -> None:
    single = with_one_thread(original(4))
    assert single is not None
    assert single.plan.settings.threads == 1
    assert single.plan.model_copy(update={"settings": original(4).plan.settings}) == original(4).plan


def test_an_original_with_one_thread_or_on_a_gpu_stays_as_it_is() -> None:
    assert with_one_thread(original(1)) is None
    assert with_one_thread(original(4, RuntimeName.ONNXRUNTIME_CUDA)) is None


@pytest.mark.parametrize(("milliseconds", "times"), [(2.0, 15.0), (60.0, 0.5)])
def test_the_gain_is_that_of_the_same_rounds(milliseconds: float, times: float) -> None:
    world = World({BASELINE: steady(30), NAME: steady(milliseconds)})
    assert gain(world.clock(least_starts=1, looks=(1,), least_rounds=1)) == pytest.approx(times)


def test_what_fails_with_one_thread_gains_nothing() -> None:
    world = World({BASELINE: steady(30), NAME: steady(1)})

    class Failing:
        def block(self, request: Block) -> Runs:
            raise RuntimeFailure("no")

        def peak_memory(self) -> int:
            return 1

        def stop(self) -> None:
            """Nothing runs."""

        def close(self) -> None:
            """Nothing is open."""

    clock = world.clock(least_starts=1, looks=(1,), least_rounds=1)
    clock._start = lambda name: Failing() if name == NAME else world.start(name)
    assert gain(clock) == 0
