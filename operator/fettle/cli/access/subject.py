"""The object that a command is about, written as for kubectl: NAME or KIND/NAME."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from fettle.api.base import GROUP, VERSION
from fettle.cli.access.cluster import DEPLOYMENTS, MODELS
from fettle.errors import UsageError

KINDS = (DEPLOYMENTS, MODELS)
SHORT_NAMES = {DEPLOYMENTS: "mdep", MODELS: "om"}
SUFFIXES = (f".{VERSION}.{GROUP}", f".{GROUP}")  # as `kubectl get -o name` writes them


@dataclass(frozen=True)
class Subject:
    """A name, and the kinds (in the plural) that it may refer to."""

    name: str
    kinds: tuple[str, ...] = KINDS


def kind_of(word: str) -> str | None:
    """The plural of a Fettle kind in any spelling that kubectl accepts (om, optimizedmodel, OptimizedModels.fettle.dev); None for other words."""
    word = word.lower()
    for suffix in SUFFIXES:
        word = word.removesuffix(suffix)
    return next((plural for plural, short in SHORT_NAMES.items() if word in (plural, plural[:-1], short)), None)


def subject_of(given: str, kinds: tuple[str, ...] = KINDS) -> Subject:
    """The object of these kinds that `given` names. Raises UsageError."""
    kind, slash, name = given.partition("/")
    if not slash:
        return Subject(given, kinds)
    plural = kind_of(kind)
    if plural not in kinds or not name or "/" in name:
        forms = [f"{SHORT_NAMES[each]}/NAME ({_article(each)})" for each in kinds]
        raise UsageError(f"{given}: expected {', '.join(['NAME', *forms[:-1]])} or {forms[-1]}")
    return Subject(name, (plural,))


def _article(plural: str) -> str:
    singular = plural[:-1]
    return f"{'an' if singular[0] in 'aeiou' else 'a'} {singular}"


class SubjectType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """An argument that names an object of either kind."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Subject:
        """Raises UsageError."""
        return value if isinstance(value, Subject) else subject_of(value)


class NameType(click.ParamType):  # type: ignore[type-arg]  # as above
    """An argument that names an object of one kind, as NAME or KIND/NAME; its value is NAME."""

    name = "name"

    def __init__(self, plural: str) -> None:
        self.plural = plural

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Raises UsageError."""
        return subject_of(value, (self.plural,)).name
