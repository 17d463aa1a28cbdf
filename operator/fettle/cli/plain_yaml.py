"""YAML that every reader takes for the same: what some of them read as yes and no is quoted, such as the N of a batch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Takes single letters for truth values, as YAML 1.1 and Kubernetes' clients do, so that texts like them are quoted."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^[yYnN]$"), list("yYnN"))


def dumped(documents: Iterable[Any], width: int | None = None) -> str:
    """`documents` as YAML, keys in their own order."""
    return str(yaml.dump_all(list(documents), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width))
