"""What to do on a command line about a message that names fields of the manifest, which the user has not written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fettle.api.text import joined
from fettle.cli.local.admission import schema_of
from fettle.cli.local.manifests import KIND

# Fields that have options of their own. A field below another has its option unless it is here itself.
OPTIONS: Mapping[str, str] = {
    "source.signature": "--signature",
    "source.trusted": "--trusted",
    "source.inputs": "--input",
    "source.factory": "--factory",
    "source.factory.callable": "--factory",
    "source.factory.uri": "--factory-code",
    "data.evaluation": "--evaluation",
    "data.evaluation.labelKey": "--label-key",
    "data.evaluation.metric": "--metric",
    "data.calibration": "--calibration",
    "data.training": "--training",
    "data.training.labelKey": "--label-key",
    "targets[].runtimes": "--runtime",
    "targets[].threads": "--threads",
    "targets[].batchSizes": "--batch-size",
    "constraints.accuracy.maxDrop": "--max-drop",
}
_ONLY_ON_CLUSTERS = frozenset({"source.format"})
# Fields of data.evaluation, where the message has named it before.
_BARE = re.compile(r"(?<![\w.])(labelOffset|severalLabels|ignoreLabel)\b")
_FIELD = re.compile(r"(?<![\w./-])(?:source|data|targets\[\]|constraints|search)(?:\.[a-zA-Z]+(?:\[\])?)+")


def option_hint(message: str) -> str:
    """How to set on the command line the fields that `message` names; empty if it names none."""
    fields = [field for field in dict.fromkeys(_fields(message)) if field not in _ONLY_ON_CLUSTERS]
    known = [f"{field} is {OPTIONS[field]}" for field in fields if field in OPTIONS]
    others = [field for field in fields if field not in OPTIONS]
    parts = [f"on the command line, {joined(known)}"] if known else []
    if others:
        has, it = ("has no option", "it") if len(others) == 1 else ("have no options", "them")
        how = f"add `-o yaml > model.yaml` to `fettle optimize`, set {it} in that file, and run `fettle optimize -f model.yaml`"
        parts.append(f"{joined(others)} {has}: {how}")
    return "; ".join(parts)


def _fields(message: str) -> Iterator[str]:
    schema = schema_of(KIND)["properties"]["spec"]
    for found in _FIELD.finditer(message):
        if _exists(found[0], schema):
            yield found[0].removesuffix("[]")
    for found in _BARE.finditer(message):
        yield f"data.evaluation.{found[0]}"


def _exists(field: str, schema: Mapping[str, Any]) -> bool:
    """Whether the spec has that field: `source.onnx` is a file."""
    node: Mapping[str, Any] = schema
    for word in field.split("."):
        node = node.get("properties", {}).get(word.removesuffix("[]"), {})
        node = node.get("items", node) if word.endswith("[]") else node
    return bool(node)
