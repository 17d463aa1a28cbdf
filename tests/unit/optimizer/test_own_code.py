"""What a user's own code raises, in each of the places that call it."""

from __future__ import annotations

import pytest

from fettle.errors import DataError, FettleError, SourceError
from fettle.optimizer.own_code import guarded, load


@pytest.mark.parametrize("raised", [MemoryError(), SourceError("no weights in this file")])
def test_a_lack_of_memory_and_an_error_of_fettles_own_stay_what_they_are(raised: Exception) -> None:
    with pytest.raises(type(raised)) as told, guarded(lambda error: DataError("the code failed")):
        raise raised
    assert told.value is raised


@pytest.mark.parametrize("raised", [KeyError("x"), SystemExit(3), SyntaxError("?")])
def test_anything_else_becomes_the_error_of_who_called_it(raised: BaseException) -> None:
    with (
        pytest.raises(DataError, match=f"failed: {type(raised).__name__}") as told,
        guarded(lambda error: DataError(f"failed: {type(error).__name__}")),
    ):
        raise raised
    assert told.value.__cause__ is raised


def test_code_that_runs_out_of_memory_while_it_is_loaded_is_not_called_wrong() -> None:
    with pytest.raises(MemoryError):
        load("raise MemoryError", "score", "data.evaluation.custom", DataError)


@pytest.mark.parametrize("refusal", [DataError, SourceError])
def test_code_without_the_function_is_refused_by_the_error_of_its_field(refusal: type[FettleError]) -> None:
    with pytest.raises(refusal, match=r"field defines no function 'score', found grade: set field\.function"):
        load("def grade(): ...", "score", "field", refusal)
