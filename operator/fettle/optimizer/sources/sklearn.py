"""scikit-learn: estimators in files of skops, and in pickles (joblib's too) that the user trusts."""

from __future__ import annotations

import importlib
import inspect
import warnings
from pathlib import Path
from typing import Any

from fettle.api.reasons import Reason
from fettle.api.text import quoted
from fettle.api.vocabulary import FormatName
from fettle.errors import SourceError
from fettle.optimizer.sources import archive, newer, pickles, sklearn_onnx
from fettle.optimizer.sources.base import Inputs
from fettle.optimizer.sources.framework import FrameworkFormat, LoadedModel, require_modules

_SCHEMA = "schema.json"  # what skops writes beside the arrays
_SUFFIXES = (".pkl", ".pickle", ".joblib")
_COMPRESSED = (b"\x78", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\x00", b"\x04\x22\x4d\x18")  # as joblib compresses
_NO_PARTS = ("sklearn.datasets", "sklearn.utils._testing", "sklearn.externals")  # they read addresses and run programs
_USUAL = ("numpy.", "scipy.", "joblib.", "collections.", "copyreg.")  # in almost every estimator's file: told last
_MOST_NAMED = 3


class ScikitLearn(FrameworkFormat):
    """An estimator, or a whole pipeline."""

    name = FormatName.SCIKIT_LEARN
    title = "scikit-learn"
    framework = "scikit-learn"
    modules = ("sklearn", "skl2onnx", "skops")
    extra = "sklearn"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By the table of contents of the archive; a pickle by what it imports, read off its instructions."""
        if head.startswith(archive.ZIP):
            return _SCHEMA in archive.names(path)
        suffix = path.suffix.lower() in _SUFFIXES
        if head.startswith(pickles.HEADS):
            return suffix or any(name.startswith("sklearn.") for name in pickles.imported(path))
        return suffix and head.startswith(_COMPRESSED)

    def require(self, path: Path, trusted: bool) -> None:
        """See `SourceFormat.require`."""
        packed = archive.is_zip(path)
        if not packed and not trusted:
            raise _untrusted_pickle(path)
        require_modules(path, self)
        if packed and not trusted:
            _refuse_unknown_types(path)

    def load(self, path: Path, inputs: Inputs) -> LoadedModel:
        """See `FrameworkFormat.load`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it was saved by another version: its answers are what counts
            estimator = _estimator(path, inputs.trusted)
        if not (hasattr(estimator, "predict") or hasattr(estimator, "transform")):
            message = (
                f"{path.name} holds a {type(estimator).__name__}; expected an estimator that predicts or transforms"
            )
            raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
        names = inputs.columns() if getattr(estimator, "feature_names_in_", None) is not None else ()
        return sklearn_onnx.FittedEstimator(estimator, sklearn_onnx.columns(estimator, inputs.by_name, names))


FORMATS = (ScikitLearn(),)


def _estimator(path: Path, trusted: bool) -> Any:
    """Load the file; code in it runs only where it is `trusted`."""
    if not archive.is_zip(path):
        import joblib

        return joblib.load(path)
    import skops.io

    archive.check(path)
    types = skops.io.get_untrusted_types(file=path)
    return skops.io.load(path, trusted=types if trusted else [name for name in types if _is_sklearns(name)])


def _is_sklearns(name: str) -> bool:
    """Whether that is a class of scikit-learn's own, as the trees of a forest are: skops trusts its estimators, but not all of their parts.

    A function is not: an estimator may call it with whatever the file says.
    """
    module, _, attribute = name.rpartition(".")
    if not module.startswith("sklearn.") or module.startswith(_NO_PARTS):
        return False
    try:
        return inspect.isclass(getattr(importlib.import_module(module), attribute, None))
    except ImportError:
        return False


def _untrusted_pickle(path: Path) -> SourceError:
    named = _most_telling(set(pickles.imported(path)))
    what = f" that needs {named}" if named else ""
    message = (
        f"{path.name} is a pickle{what}: unpickling runs whatever code the file names, so it was not loaded; save the estimator with "
        "skops.io.dump(estimator, 'model.skops'), or set source.trusted: true if you made this file yourself"
    )
    return SourceError(message, reason=Reason.UNSAFE_PICKLE)


def _most_telling(named: set[str]) -> str:
    """Names for a person who has to decide whether to trust them: scikit-learn's, then others, which no number of those may hide."""
    own = sorted(name for name in named if name.startswith("sklearn."))
    others = sorted(named.difference(own), key=lambda name: (name.startswith(_USUAL), name))
    shown = [*own[:_MOST_NAMED], *others[:_MOST_NAMED]]
    more = f" and {len(named) - len(shown)} more" if len(named) > len(shown) else ""
    return ", ".join(shown) + more


def _refuse_unknown_types(path: Path) -> None:
    """Raises SourceError (UnsafePickle) for a file of skops with types that skops does not know, SourceCorrupted for a damaged one."""
    import skops.io

    archive.check(path)
    try:
        types = [name for name in skops.io.get_untrusted_types(file=path) if not _is_sklearns(name)]
    except Exception as error:  # the library raises what it likes for a damaged file
        if (told := newer.said(error)) is not None:
            raise newer.unreadable(path, "skops", told) from error
        message = f"{path.name} is a damaged file of skops: {quoted(error)}"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED) from error
    if types:
        message = (
            f"{path.name} needs {', '.join(sorted(types)[:_MOST_NAMED])}, which skops does not trust, so it was not loaded; "
            "set source.trusted: true if you made this file yourself"
        )
        raise SourceError(message, reason=Reason.UNSAFE_PICKLE)
