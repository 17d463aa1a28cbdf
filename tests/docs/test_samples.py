"""What pages show of a command's output is what the command prints today, of an object as a real run left it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.docs.pages import blocks

from fettle.cli.commands.status import Seen, picture

WIDTH = 118
HERE = Path(__file__).parent
GUIDE = Path("docs/guides/rollouts.md")


def pods(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods of each revision as its status counts them, ready and starting."""
    return [
        {
            "metadata": {"labels": {"fettle.dev/revision": one["revision"]}},
            "status": {"conditions": [{"type": "Ready", "status": str(number < one["ready"])}]},
        }
        for one in (status.get("stable"), status.get("canary"))
        if one is not None
        for number in range(one["replicas"])
    ]


def printed(found: dict[str, Any]) -> str:
    """What `kubectl fettle status` prints of a ModelDeployment on a terminal of WIDTH columns."""
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(picture(Seen(found, None, pods(found["status"])), WIDTH))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


@pytest.mark.parametrize("name", ["on-trial", "rolled-back"])
def test_the_guide_shows_what_status_prints(name: str) -> None:
    found = yaml.safe_load((HERE / f"{name}.yaml").read_text())
    shown = [block.text for block in blocks(GUIDE) if block.text.startswith("$ kubectl fettle status")]
    assert f"$ kubectl fettle status {found['metadata']['name']}\n{printed(found)}" in shown
