"""Text that must fit keeps its beginning and its end."""

from __future__ import annotations

import pytest

from fettle.api.conditions import Condition, with_condition
from fettle.api.reasons import Reason
from fettle.api.text import CONDITION_LIMIT, EVENT_LIMIT, beyond, clip, error_text, quoted, rounded


def test_what_fits_is_left_alone() -> None:
    assert clip("x" * 512) == "x" * 512


def test_what_does_not_fit_keeps_what_happened_and_why() -> None:
    found = clip("Pod was refused: " + "detail " * 500 + "exceeded quota: team")
    assert found.startswith("Pod was refused: detail")
    assert found.endswith("exceeded quota: team")
    assert " … " in found


@pytest.mark.parametrize("limit", range(60, 120))
def test_words_are_never_cut(limit: int) -> None:
    said = "Could not find an implementation for MatMul(13) node with name 'encoder/layer_0/attention/self/query/MatMul' in this build"
    head, tail = clip(said, limit).split(" … ")
    assert said.startswith(f"{head} ")
    assert said.endswith(f" {tail}")


def test_what_is_longer_than_a_word_is_cut_all_the_same() -> None:
    assert clip("a " + "x" * 500 + " b", 100).count("x") > 60


@pytest.mark.parametrize("limit", [100, 512])
def test_half_a_letter_is_written_as_its_number(limit: int) -> None:
    found = clip("the weights are quantized by \ud800" + " and more" * 20, limit)
    assert found.startswith("the weights are quantized by \\ud800")
    assert len(found.encode()) <= limit


def test_what_a_library_said_goes_on_one_line() -> None:
    assert quoted(ValueError("[ShapeInferenceError]\n\t  Output:y ")) == "[ShapeInferenceError] Output:y"


def test_an_error_without_a_message_is_told_by_its_class() -> None:
    assert error_text(TimeoutError()) == "TimeoutError"
    assert error_text(ConnectionRefusedError(111, "Connection refused")) == "[Errno 111] Connection refused"


@pytest.mark.parametrize(
    ("found", "bound", "expected"),
    [
        (12.345, 10, "12.3"),
        (10.004, 10, "10.004"),
        (0.02004, 0.02, "0.02004"),
        (1.2, 1.2, "1.2"),
        (9.9996, 10, "9.9996"),
        (212.4, 10, "212"),
        (1413.0, 1000, "1,410"),
    ],
)
def test_a_figure_never_reads_like_the_bound_that_it_misses(found: float, bound: float, expected: str) -> None:
    assert beyond(found, bound) == expected


@pytest.mark.parametrize(
    ("value", "written"),
    [(1413, "1,410"), (1.41e6, "1,410,000"), (106.2, "106"), (0.01234, "0.0123"), (0.0, "0"), (7, "7"), (-2.5, "-2.5")],
)
def test_a_figure_is_written_as_a_person_writes_it(value: float, written: str) -> None:
    assert rounded(value) == written


@pytest.mark.parametrize("letter", ["x", "é", "界", "😀"])
@pytest.mark.parametrize("limit", [64, 255, 512, EVENT_LIMIT])
def test_the_bound_is_in_bytes_and_cuts_no_letter_in_two(letter: str, limit: int) -> None:
    found = clip(letter * 4000, limit)
    assert limit - 8 <= len(found.encode()) <= limit
    assert set(found) == {letter, " ", "…"}


def test_a_condition_holds_what_an_api_server_may_say() -> None:
    (found,) = with_condition((), "Ready", False, Reason.FORBIDDEN, "x" * 100_000, generation=1, now="")
    assert len(found.message.encode()) <= CONDITION_LIMIT
    assert Condition.model_validate(found.to_json()) == found
