"""What goes on beside the demo: it ends with the block, and its faults are the block's."""

from __future__ import annotations

import threading

import pytest
from tools.demo.background import Background
from tools.demo.kube import DemoError


class Failing(Background):
    """Fails when it is called for the first time."""

    def __init__(self) -> None:
        super().__init__("failing", every=0)
        self.called = threading.Event()

    def turn(self) -> None:
        self.called.set()
        raise ValueError("no")


class Pausing(Background):
    """Pauses for an hour."""

    def __init__(self) -> None:
        super().__init__("pausing", every=0)
        self.called = threading.Event()

    def turn(self) -> None:
        self.called.set()
        self.pause(3600)


def test_what_a_call_raises_ends_the_block_with_its_words() -> None:
    with pytest.raises(DemoError, match=r"failing: ValueError\('no'\)"), Failing() as failing:
        failing.called.wait()


def test_a_block_that_fails_tells_of_the_call_that_failed_before() -> None:
    with pytest.raises(DemoError, match="failing") as raised, Failing() as failing:
        failing.called.wait()
        raise TimeoutError("the store is away")
    assert isinstance(raised.value.__cause__, ValueError) and isinstance(raised.value.__context__, TimeoutError)


def test_whoever_interrupts_a_block_interrupts_it() -> None:
    with pytest.raises(KeyboardInterrupt), Failing() as failing:
        failing.called.wait()
        raise KeyboardInterrupt


def test_a_pause_is_no_longer_than_the_block() -> None:
    with Pausing() as pausing:
        pausing.called.wait()
