"""A Job's result in its log, whatever stands in it and around it."""

from __future__ import annotations

import pytest

from fettle.api.report import BuildReport, frame, unframe


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\n", "\r\n"])
def test_a_result_is_found_whole_whatever_characters_are_in_it(odd: str) -> None:
    report = BuildReport(name="int8", cache_key="key", message=f"tensor a{odd}b")
    line, digest = frame(report)
    assert unframe(f"50 %\r100 %\r{line}\nsome more\n", digest) == report
