"""Files that are generated from the models: written, or checked against what they should be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click


def write(files: Iterable[tuple[Path, str]], *, check: bool) -> None:
    """Write each file; with `check` write nothing and end the process, with status 1 if a file differs."""
    if check:
        stale = [path for path, text in files if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in stale:
            click.echo(f"{path} is out of date: run `make crds`", err=True)
        raise SystemExit(1 if stale else 0)
    for path, text in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        click.echo(path)
