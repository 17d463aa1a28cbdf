"""How the gain of a candidate is told to people."""

from __future__ import annotations

from tests.unit.plan.choose.figures import row

from fettle.api.bounds import gain
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.vocabulary import Basis


def of_basis(found: CandidateStatus, basis: Basis) -> CandidateStatus:
    """The row, timed beside something else."""
    assert found.speedup is not None
    return found.model_copy(update={"speedup": found.speedup.model_copy(update={"basis": basis})})


def test_a_gain_says_what_was_timed_beside_the_candidate() -> None:
    found = row("int8", (3.0, 2.9, 3.1))
    assert gain(found) == "3 [2.9, 3.1] times as fast as the original"
    assert gain(of_basis(found, Basis.PORTABLE_FORM)) == "3 [2.9, 3.1] times as fast as the converted model (ONNX)"
    assert gain(row("int8", None)) == ""


def test_of_an_unsteady_clock_only_the_lower_end_is_claimed() -> None:
    found = row("int8", (1714.6, 776.3, 3789.9), reason=Reason.MEASUREMENT_UNSTABLE)
    assert gain(found) == "at least 776 times as fast as the original (the timing was unsteady: 1,710 [776, 3,790])"
