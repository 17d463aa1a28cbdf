"""The one error tree of Fettle.

FettleError                    something a person should read: reason (closed list), message (what was expected, what was found, what to do)
├── SourceError                the model handed in: not found, damaged, unsafe, not supported
│   └── ConversionError        it runs in its own framework, but could not be brought into the portable form
├── DataError                  calibration or evaluation data
├── RecipeError                a recipe that does not fit the source or the hardware
├── RuntimeFailure             a runtime could not load or run a model
├── WorkerLostError            another process of a training on several nodes is gone: the attempt ends, and the next goes on from its checkpoint
├── StoreError                 the artifact store: not found, full, unreachable, tampered with
│   └── AbsentError            the store is there, and a file or folder of it is not
├── ClusterError               Kubernetes refused or could not be reached
│   ├── ConflictError          the object changed since it was read: read again
│   ├── ExistsError            an object of that name exists already
│   └── MissingError           the object, or its kind, is not there
└── UsageError                 a command line or a setting that cannot be acted on (CLI exit status 2)

Whether trying again can succeed is a property of the error (`retryable`), never of the place that catches it.
"""

from __future__ import annotations

from fettle.api.reasons import Reason


class FettleError(Exception):
    """Base of every error a person is meant to read.

    `reason` is from the closed list of `api/reasons.py`; `retryable` says whether the same attempt may succeed later.
    """

    default_reason: Reason = Reason.INVALID_SPEC

    def __init__(self, message: str, *, reason: Reason | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.retryable = retryable


class SourceError(FettleError):
    """The source model is missing, damaged, unsafe or not supported."""

    default_reason = Reason.SOURCE_NOT_FOUND


class ConversionError(SourceError):
    """The source runs in its own framework, but could not be brought into the portable form."""

    default_reason = Reason.UNSUPPORTED_OPERATOR


class DataError(FettleError):
    """Calibration or evaluation data is missing or does not fit the model's signature."""

    default_reason = Reason.DATA_INVALID


class RecipeError(FettleError):
    """A recipe does not fit this source, this data or this hardware: one rejected candidate, not the end of the run."""

    default_reason = Reason.RECIPE_NOT_APPLICABLE


class RuntimeFailure(FettleError):
    """A runtime could not load a model or failed while it ran."""

    default_reason = Reason.MODEL_LOAD_FAILED


class WorkerLostError(FettleError):
    """Another process of a training on several nodes cannot be reached, or is gone. Always retryable: the next attempt goes on."""

    default_reason = Reason.NODE_LOST

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


class StoreError(FettleError):
    """The artifact store cannot be read or written as asked."""

    default_reason = Reason.STORE_UNREACHABLE


class AbsentError(StoreError):
    """A file or folder is not there. A store or a bucket that is not there is a plain StoreError."""

    default_reason = Reason.STORE_NOT_FOUND


class ClusterError(FettleError):
    """Kubernetes refused a request or could not be reached."""

    default_reason = Reason.FORBIDDEN


class ConflictError(ClusterError):
    """The object changed since it was read, or is not the one that was meant: look again. Always retryable."""

    default_reason = Reason.NAME_CONFLICT


class ExistsError(ClusterError):
    """An object of that name exists already."""

    default_reason = Reason.NAME_CONFLICT


class MissingError(ClusterError):
    """The object, its namespace or its kind is not there."""

    default_reason = Reason.CLUSTER_UNREACHABLE


class UsageError(FettleError):
    """A command line, a manifest or a setting that cannot be acted on."""

    default_reason = Reason.INVALID_SPEC
