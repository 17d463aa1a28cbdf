"""What an administrator may set: the chart's values, and the environment of the operator and of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from fettle.server.settings import ServerSettings
from fettle.settings import Settings
from tools.docs.markdown import code, generated, table

HEAD = ("variable", "default", "meaning")


def page(values: str) -> str:
    """The settings reference; `values` is the table of the chart's values."""
    return "\n".join(
        [
            generated("charts/fettle/values.yaml, settings.py and server/settings.py"),
            "# Values and settings\n",
            "## Chart values\n",
            "The chart rejects unknown values. The variable in brackets is the operator's setting that a value becomes.\n",
            values,
            "## The operator's environment\n",
            "The chart sets these variables. You only set them yourself if you run `python -m fettle.controller` without the chart. Maps are",
            "JSON, and lists of words are separated by commas.\n",
            table(HEAD, _rows(Settings)),
            "## The server's environment\n",
            "The operator sets these variables in every serving pod. You only set them yourself if you run `python -m fettle.server` by hand.\n",
            table(HEAD, _rows(ServerSettings)),
        ]
    )


def _rows(settings: type[BaseSettings]) -> Iterator[tuple[str, ...]]:
    prefix = settings.model_config["env_prefix"]
    for name, field in settings.model_fields.items():
        yield code(f"{prefix}{name.upper()}"), code(_default(field.default)), field.description or ""


def _default(value: Any) -> str:
    """A default as the environment would say it."""
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, tuple):
        return ",".join(value)
    return TypeAdapter(Any).dump_json(value, by_alias=True).decode().strip('"')
