"""What other tools make of an object: Argo CD by the chart's Lua, kstatus (which Flux uses) by its own code."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.charts.helm import CHART
from tools.cluster.shell import Progress
from tools.integrations.programs import RULES, ensure

CUSTOMIZATIONS = CHART / "resource_customizations"
Object = dict[str, Any]


class RuleError(Exception):
    """What the script, or kstatus, complains of."""


@cache
def _binary() -> Path:
    return ensure(RULES, Progress(stderr=True))


def script(kind: str, *parts: str) -> str:
    """A script of a kind: health.lua, actions/discovery.lua or actions/NAME/action.lua."""
    return CUSTOMIZATIONS.joinpath("fettle.dev", kind, *parts).read_text(encoding="utf-8")


def _ask(question: Mapping[str, Any]) -> Any:
    done = subprocess.run([_binary()], input=json.dumps([question]), capture_output=True, text=True, check=True)
    (answer,) = json.loads(done.stdout)
    if "error" in answer:
        raise RuleError(answer["error"])
    return answer["result"]


def health(obj: Object) -> tuple[str, str]:
    """Argo CD's health of an object, and its message."""
    found = _ask({"script": script(obj["kind"], "health.lua"), "object": obj})
    return found["status"], found.get("message", "")


def actions(obj: Object) -> dict[str, Object]:
    """The actions that Argo CD offers for an object, by name."""
    found: dict[str, Object] = _ask({"script": script(obj["kind"], "actions", "discovery.lua"), "object": obj})
    return found


def after(obj: Object, action: str, parameters: Mapping[str, str] | None = None) -> Object:
    """The object after an action. Raises RuleError with the action's complaint."""
    lua = script(obj["kind"], "actions", action, "action.lua")
    found: Object = _ask({"script": lua, "object": obj, "parameters": dict(parameters or {})})
    return found


def kstatus(obj: Object) -> str:
    """InProgress, Current, Failed, …"""
    return str(_ask({"object": obj})["status"])
