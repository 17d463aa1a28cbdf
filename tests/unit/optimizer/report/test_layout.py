"""The report on a phone and on paper: what its style says, and what a browser makes of it where one is there."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PHONE, PAPER = 390, 688  # px: of a common phone, and of A4 between margins of 14 mm at 96 px an inch
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOOK = """
<iframe id="page" style="border: 0; width: {width}px; height: 30000px" srcdoc="{report}"></iframe><pre id="seen"></pre>
<script>onload = () => {{
  const page = document.getElementById('page').contentDocument, all = [...page.body.querySelectorAll('*')]
  const cut = all.filter(one => one.scrollWidth > one.clientWidth + 1 && /auto|hidden|scroll/.test(getComputedStyle(one).overflowX)
                                && one.clientWidth > 1)
  const text = all.filter(one => one.tagName != 'style' && [...one.childNodes].some(child => child.nodeType == 3 && child.data.trim()))
  const unseen = text.filter(one => !one.getClientRects().length || getComputedStyle(one).visibility == 'hidden')
  document.getElementById('seen').textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    cut: cut.map(one => one.getAttribute('aria-label') || one.tagName),
    unseen: unseen.map(one => one.textContent),
    rows: getComputedStyle(page.querySelector('table.candidates tbody tr')).display,
    numbers: [...page.querySelectorAll('td.number')].map(one => one.getClientRects().length),
  }})
}}</script>"""


def rules(report: str, media: str) -> str:
    """What the style says for a medium."""
    begin = report.index(f"@media {media} {{")
    return report[begin : report.index("\n}", begin)]


# ------------------------------------------------------------------------------------------------------------- what it says


def test_a_phone_lays_the_page_out_in_its_own_width(report: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in report


def test_a_cell_whose_header_a_phone_has_no_room_for_names_itself(report: str) -> None:
    assert re.search(r"table\.candidates tr \{ display: grid", rules(report, "(max-width: 40rem)"))
    assert "content: attr(data-label)" in rules(report, "(max-width: 40rem)")
    table = report[report.index('<table class="candidates"') :].partition("</table>")[0]
    heads = re.findall(r"<th [^>]*columnheader[^>]*>([^<]+)</th>", table)
    rows = re.findall(r'<tr role="row" class=.*?</tr>', table, re.DOTALL)
    assert len(rows) > 8
    for row in rows:
        cells = re.findall(r"<(t[dh]) ([^>]*)>", row)
        named = [re.search(r'data-label="([^"]+)"', attributes) for _, attributes in cells]
        labels = [found[1] if found else head for found, head in zip(named, heads, strict=True)]
        assert labels == heads
        assert [head for head, found in zip(heads, named, strict=True) if not found] == ["candidate", "verdict"]


def test_on_paper_nothing_is_hidden_or_left_in_a_container_that_scrolls(report: str) -> None:
    paper = rules(report, "print")
    assert not re.search(r"display: none|visibility: hidden|overflow(-x)?: (auto|hidden|scroll)", paper)
    assert ".scroll { overflow: visible; }" in paper
    assert "display: none" not in report.partition("</style>")[0], "nor anywhere else"


# ----------------------------------------------------------------------------------------------------------- what one sees


def seen(report: str, width: int, folder: Path) -> dict[str, Any]:
    """What a browser makes of it in a frame of `width` px, without a script of the report's."""
    page = folder / "look.html"
    page.write_text(LOOK.format(width=width, report=html.escape(report)))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    found: dict[str, Any] = json.loads(
        html.unescape(done.stdout.partition('<pre id="seen">')[2].partition("</pre>")[0])
    )
    return found


in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed here")


@in_a_browser
@pytest.mark.parametrize("width", [320, PHONE])
def test_a_phone_scrolls_the_page_in_one_direction_only(report: str, tmp_path: Path, width: int) -> None:
    found = seen(report, width, tmp_path)
    assert found["width"] <= width
    assert width < PHONE or found["cut"] == [], "no plot and no table is wider than its card, on most phones"
    assert found["rows"] == "grid", "a candidate is a block"
    assert found["unseen"] == []
    assert all(found["numbers"]), "the plots name candidates by number"


@in_a_browser
def test_a_sheet_of_paper_has_room_for_everything(report: str, tmp_path: Path) -> None:
    found = seen(report.replace("@media print", "@media all"), PAPER, tmp_path)
    assert found["width"] <= PAPER
    assert (found["cut"], found["unseen"]) == ([], [])
    assert found["rows"] == "table-row"
