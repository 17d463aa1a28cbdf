"""The site builds strictly (links, anchors, nothing left out of the navigation), and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown.extensions.toc import slugify
from tests.docs.pages import FENCE, PAGES, ROOT

LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)(?!\{)")
LOADS = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\"|<link[^>]*\shref=\"([^\"]+)\"|url\(([^)]+)\)")
OUTSIDE_THE_SITE = [page for page in PAGES if page.parts[0] != "docs"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_with_every_link_and_anchor(site: Path) -> None:
    built = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")} - {Path("404.md")}
    assert built == {Path(*page.parts[1:]) for page in PAGES if page.parts[0] == "docs"}


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        loaded = ["".join(found) for found in LOADS.findall(page.read_text(encoding="utf-8"))]
        foreign = [address for address in loaded if re.match(r"['\"]?(https?:)?//", address)]
        assert foreign == [], page


@pytest.mark.parametrize("page", OUTSIDE_THE_SITE, ids=str)
def test_links_of_pages_outside_of_the_site_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / unquote(name) if name else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", target.read_text(encoding="utf-8"))
            assert anchor in {slugify(heading, "-") for heading in headings}, link
