"""Every page that people read, and what stands in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "charts/**/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*).*?\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n|(?<=\n)\n(?= {4}))+")
INLINE = re.compile(r"`([^`\n]+)`")
SHELLS = {"sh", "bash", "shell", "console"}
STATEMENT = re.compile(r"&&|\|\||[|;]")


@dataclass(frozen=True)
class Block:
    """A block of code: its language (none when it is only indented), its text, and its line in the page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Every block of code of a page, in no order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 2, found["language"], found["text"])
    plain = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in INDENTED.finditer(plain):
        code = "\n".join(line[4:] for line in found[0].splitlines()) + "\n"
        yield Block(page, plain.count("\n", 0, found.start()) + 1, "", code)


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every shell command of a page as words, with where it stands: of blocks, and whole commands inside of a line."""
    for block in blocks(page):
        if block.language in SHELLS or not block.language:
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from ((str(block), words) for words in _words(line))
    prose = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for code in INLINE.findall(prose):
        yield from ((str(page), words) for words in _words(code))


def _words(line: str) -> Iterator[list[str]]:
    line = re.sub(r"(^|\s)#.*", "", line.removeprefix("$ "))
    try:
        words = shlex.split(line)
    except ValueError:  # prose, or a line of another language
        return
    statement: list[str] = []
    for word in [*words, ";"]:
        if STATEMENT.fullmatch(word) or word.endswith(";"):
            if statement:
                yield statement
            statement = []
        else:
            statement.append(word)
