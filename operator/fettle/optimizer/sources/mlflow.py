"""MLflow: a directory with a file MLmodel that says where in it the model lies, and which framework's it is.

It is no format of its own: what it names is a source like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from fettle.api.reasons import Reason
from fettle.api.text import quoted
from fettle.errors import SourceError

ENTRY = "MLmodel"
# By flavour, the key that says where its model lies.
_FLAVOURS = {
    "onnx": "data",
    "sklearn": "pickled_model",
    "xgboost": "data",
    "lightgbm": "data",
    "catboost": "data",
    "tensorflow": "data",
    "keras": "data",
    "pytorch": "model_data",
    "transformers": "model_binary",
}
_CODE = "python_function"
MOST_BYTES = 1 << 20  # a signature of thousands of columns takes less


def inner(text: bytes, uri: str) -> str:
    """Where the model lies, relative to the file MLmodel, which begins with `text`: a file or a folder.

    Raises SourceError: SourceCorrupted; UnsupportedModel for a flavour that is not read, such as Python code of one's own.
    """
    flavours = _flavours(text, uri)
    name = next((name for name in _FLAVOURS if name in flavours), None)
    if name is None:
        found = ", ".join(sorted(map(str, flavours))) or "none"
        code = " (a model with python_function alone is arbitrary Python code)" if list(flavours) == [_CODE] else ""
        message = f"{uri} has the flavors {found}{code}; expected one of {', '.join(_FLAVOURS)}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    flavour = flavours[name]
    place = flavour.get(_FLAVOURS[name]) if isinstance(flavour, Mapping) else None
    if not isinstance(place, str) or PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
        message = (
            f"{uri}: expected {_FLAVOURS[name]} of the flavor {name}, a path inside the directory; found {place!r}"
        )
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)
    return place


def _flavours(text: bytes, uri: str) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        message = f"{uri} is damaged: it is not YAML: {quoted(error, 200)}"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED) from error
    flavours = document.get("flavors") if isinstance(document, Mapping) else None
    if not isinstance(flavours, Mapping):
        raise SourceError(f"{uri} is damaged: it lists no flavors", reason=Reason.SOURCE_CORRUPTED)
    return flavours
