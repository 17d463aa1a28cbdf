"""A page of this machine, in a browser."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # without any of these, Linux has no browser to show a page in


def open_page(path: Path | str) -> None:
    """Open it; where no browser can be started, say where the page is."""
    if not _may_start() or click.launch(str(Path(path).resolve())) != 0:
        click.echo(f"could not start a browser: open {path} yourself", err=True)


def _may_start() -> bool:
    """Whether starting one is worth a try: xdg-open tries one program after another, and complains of each."""
    if sys.platform != "linux":
        return True
    return shutil.which("xdg-open") is not None and any(map(os.environ.get, DISPLAYS))
