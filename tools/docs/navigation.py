"""A hook of mkdocs: a navigation entry that names a folder (`design/`) stands for every page in it, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Called by mkdocs before it reads the navigation."""
    config["nav"] = [_filled(entry, Path(config["docs_dir"])) for entry in config["nav"]]
    return config


def _filled(entry: Any, docs: Path) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {title: _pages(docs, named) if _is_folder(named) else named for title, named in entry.items()}


def _is_folder(named: Any) -> bool:
    return isinstance(named, str) and named.endswith("/")


def _pages(docs: Path, folder: str) -> list[str]:
    return [path.relative_to(docs).as_posix() for path in sorted((docs / folder).glob("*.md"))]
