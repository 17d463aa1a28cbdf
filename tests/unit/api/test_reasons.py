"""Every reason that a condition can show is explained in docs/troubleshooting.md, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

from fettle.api.reasons import Reason

TROUBLESHOOTING = (Path(__file__).parents[3] / "docs/troubleshooting.md").read_text(encoding="utf-8")


def test_troubleshooting_explains_every_reason_and_no_other() -> None:
    headings = re.findall(r"^### `(\w+)`$", TROUBLESHOOTING, flags=re.MULTILINE)
    assert sorted(headings) == sorted(Reason)
