"""The module to which weights belong: made by code of a user's own, which lies in a folder of this run and nowhere else."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch

from fettle.api.reasons import Reason
from fettle.api.source import FactorySpec
from fettle.api.text import joined, quoted
from fettle.errors import SourceError
from fettle.optimizer.own_code import called, guarded

FIELD = "source.factory.callable"
_MOST_NAMED = 8


def module_of(factory: FactorySpec, folder: Path) -> Any:
    """What the callable in the code of `folder` makes, without its weights. Raises SourceError: InvalidSpec, UnsupportedModel."""
    top = factory.callable.partition(":")[0].partition(".")[0]
    _require_module(top, factory, folder)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    with guarded(lambda error: _failure(factory.callable, error, folder)):
        _require_no_arguments(factory.callable)
        made = called(factory.callable)
    if isinstance(made, torch.nn.DataParallel):
        made = made.module
    if not isinstance(made, torch.nn.Module) or isinstance(made, torch.jit.ScriptModule):
        message = f"{FIELD} {factory.callable} returned a {type(made).__name__}, expected a torch.nn.Module"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    return made


def _require_module(top: str, factory: FactorySpec, folder: Path) -> None:
    """The module is in the folder, and no other of its name is in this process. Raises SourceError (InvalidSpec)."""
    if PathFinder.find_spec(top, [str(folder)]) is None:
        there = sorted({path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"})
        found = joined(there[:_MOST_NAMED]) if there else "none"
        message = f"{factory.uri} (source.factory.uri) contains no module {top}, which {FIELD} names; its modules are: {found}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    known = sys.modules.get(top)
    if known is None or any(place.is_relative_to(folder) for place in _places(known)):
        return
    if top in sys.stdlib_module_names or any(place.exists() for place in _places(known)):
        message = f"{FIELD}: the module {top} is called like one that is part of Fettle's own environment: rename it"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    for name in [name for name in sys.modules if name.partition(".")[0] == top]:  # of another run, whose folder is gone
        del sys.modules[name]


def _places(module: Any) -> list[Path]:
    """Where a module was loaded from."""
    file = getattr(module, "__file__", None)
    return [Path(place) for place in (*getattr(module, "__path__", ()), *([file] if file else ()))]


def _require_no_arguments(name: str) -> None:
    """Raises SourceError (InvalidSpec) for a callable that is not there, or that needs arguments; else whatever its module raises."""
    place, function = name.split(":")
    module = importlib.import_module(place)
    found = getattr(module, function, None)
    if not callable(found):
        there = sorted(
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        )
        listed = joined(there[:_MOST_NAMED]) if there else "no function"
        message = f"{FIELD}: the module {place} has no callable {function}; it defines {listed}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # of what is built in nothing is known
        return
    needed = [
        one.name
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if needed:
        message = (
            f"{FIELD} {name} needs the arguments {joined(needed)}, but it is called without any: name a function that passes them, "
            f"such as `def create(): return {function}({needed[0]}=…)`"
        )
        raise SourceError(message, reason=Reason.INVALID_SPEC)


def _failure(name: str, error: BaseException, folder: Path) -> SourceError:
    message = f"{FIELD} {name} could not make a module: {_told(error, folder)}"
    return SourceError(message, reason=Reason.UNSUPPORTED_MODEL)


def _told(error: BaseException, folder: Path) -> str:
    """What the code raised, and the last of its own lines that led there."""
    said = quoted(f"{type(error).__name__}: {error}", 250)
    if isinstance(error, ModuleNotFoundError):
        return f"{said}; Jobs have the packages of their image: put what else it needs into source.factory.uri"
    lines = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(folder)
    ]
    if not lines:
        return said
    return f"{said} ({Path(lines[-1].filename).relative_to(folder)}, line {lines[-1].lineno})"
