"""Text that must fit keeps its beginning and its end."""

from __future__ import annotations

import pytest

from fettle.api.conditions import Condition, with_condition
from fettle.api.reasons import Reason
from fettle.api.text import CONDITION_LIMIT, EVENT_LIMIT, clip


def test_what_fits_is_left_alone() -> None:
    assert clip("x" * 512) == "x" * 512


def test_what_does_not_fit_keeps_what_happened_and_why() -> None:
    found = clip("Pod was refused: " + "detail " * 500 + "exceeded quota: team")
    assert found.startswith("Pod was refused: detail")
    assert found.endswith("exceeded quota: team")
    assert " … " in found


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
