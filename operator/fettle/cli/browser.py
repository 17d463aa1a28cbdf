"""A page of this machine, in a browser."""

from __future__ import annotations

from pathlib import Path

import click


def open_page(path: Path | str) -> None:
    """Open it; where no browser can be started, say where the page is."""
    if click.launch(str(Path(path).resolve())) != 0:
        click.echo(f"could not start a browser: open {path} yourself", err=True)
