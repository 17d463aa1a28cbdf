"""What a toolchain's file says."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PINNED = re.compile(r"[A-Za-z0-9._-]+(\[[A-Za-z0-9._,-]+\])?==[^\s*]+")


class ToolchainError(Exception):
    """Something the user can act on; printed as one line, without a traceback."""


@dataclass(frozen=True)
class Toolchain:
    """One environment and the tests that run in it; the package's docstring says what each key means."""

    name: str
    about: str
    requirements: tuple[str, ...]
    extras: tuple[str, ...] = ("optimizer",)
    overrides: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    constrained: bool = True
    torch: bool = False
    root: Path = ROOT

    @property
    def tests(self) -> Path:
        """Folder of its tests."""
        return self.root / "tests" / "toolchains" / self.name

    @property
    def lock(self) -> Path:
        """Every package that it installs, with hashes."""
        return self.root / "requirements" / "toolchains" / f"{self.name}.txt"

    @property
    def environment(self) -> Path:
        """Folder of its virtual environment."""
        return self.root / ".cache" / "toolchains" / self.name


_KEYS = {field.name for field in fields(Toolchain)} - {"name", "root"}


def read(path: Path, root: Path = ROOT) -> Toolchain:
    """The toolchain that the file at `path` describes. Raises ToolchainError for a key or value that means nothing."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ToolchainError(f"{path}: {error}") from error
    unknown, missing = set(content) - _KEYS, {"about", "requirements"} - set(content)
    if unknown or missing:
        raise ToolchainError(f"{path}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    pinned = (*values["requirements"], *values.get("alone", ()))
    loose = [line for line in pinned if not _PINNED.fullmatch(line.partition(";")[0].strip())]
    if loose:
        raise ToolchainError(f"{path}: requirements are pinned as name==version, found {loose}")
    return Toolchain(name=path.stem, root=root, **values)


def toolchains(names: tuple[str, ...] = (), root: Path = ROOT) -> list[Toolchain]:
    """Those of `names`; all of them where there are none. Raises ToolchainError for a name that is not there."""
    known = {path.stem: path for path in sorted((root / "tools" / "toolchains").glob("*.toml"))}
    unknown = [name for name in names if name not in known]
    if unknown or not known:
        raise ToolchainError(f"no toolchain {', '.join(unknown) or 'at all'}; known: {', '.join(known) or 'none'}")
    return [read(known[name], root) for name in names or known]
