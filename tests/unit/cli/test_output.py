"""What is printed where no person looks: into a pipe, or without a browser."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from fettle.cli.browser import open_page
from fettle.cli.views.progress import PIPE_WIDTH, show_result


def test_a_table_in_a_pipe_has_no_blanks_at_the_ends_of_its_lines() -> None:
    table = Table(box=None)
    table.add_column("NAME")
    table.add_column("REASON")
    table.add_row("a", "because it is long")
    table.add_row("b", "")
    out = io.StringIO()
    show_result(Console(file=out, width=PIPE_WIDTH, highlight=False), table)
    lines = out.getvalue().splitlines()
    assert [line.split() for line in lines] == [["NAME", "REASON"], ["a", "because", "it", "is", "long"], ["b"]]
    assert all(line == line.rstrip() for line in lines)


def test_without_a_display_no_browser_is_tried_and_the_page_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page, tried, opener = tmp_path / "report.html", tmp_path / "tried", tmp_path / "xdg-open"
    opener.write_text(f"#!/bin/sh\ntouch {tried}\necho no browser found >&2\nexit 3\n")
    opener.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    open_page(page)
    assert capfd.readouterr().err == f"could not start a browser: open {page} yourself\n"
    assert not tried.exists()
