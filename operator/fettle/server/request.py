"""A request for inference, and how it can end: the words that fronts, codecs, service and model share. No transport is among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from fettle.runtimes.base import Array


class Code(Enum):
    """How a request ended, whichever front took it. A front says it to its clients in its own protocol's words.

    The value is what metrics count it under (label `code`): HTTP's number, so that one dashboard reads all fronts.
    """

    OK = "200"
    INVALID = "400"
    UNAUTHENTICATED = "401"  # without a token that is known
    NOT_FOUND = "404"
    NOT_ALLOWED = "405"  # the path is there, and takes another method
    TIMEOUT = "408"  # the client took too long to send its request
    TOO_LARGE = "413"
    UNSUPPORTED = "415"  # a form of body that is not taken
    LIMITED = "429"  # more than a client may ask for
    GONE = "499"  # the client hung up or gave up: nobody hears an answer
    FAILED = "500"  # the model, or the server itself
    UNAVAILABLE = "503"  # too much waits already, or the server is on its way out: try again

    __hash__ = object.__hash__  # there is one of each, and Enum's own is written in Python

    @property
    def is_failure(self) -> bool:
        """No answer, and not by the client's doing."""
        return self is Code.FAILED or self is Code.UNAVAILABLE


class RequestError(Exception):
    """A request that gets no outputs. `unread`: some of it was not read, so the connection it came on is of no more use. `retry_after`: seconds
    after which it is worth another try."""

    def __init__(self, code: Code, message: str, *, unread: bool = False, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.unread = code, message, unread
        self.retry_after = 1 if retry_after is None and code is Code.UNAVAILABLE else retry_after


def not_found(what: str, model: str, version: str) -> RequestError:
    """The error for what is not here. `model`, `version`: what is."""
    return RequestError(
        Code.NOT_FOUND, f"{what}: not found; this server serves the model {model!r}, version {version!r}"
    )


@dataclass(slots=True)  # a frozen one takes five times as long to make
class InferRequest:
    """A decoded request: arrays by input name, the outputs asked for (None = all) and the client's id.

    `binary`: the outputs that are answered as bytes, where the protocol has another form as well. `size`: bytes of the inputs; of texts, of
    the references to them. `began`: when its run began, on the clock of `time.perf_counter`; 0 until then.
    """

    inputs: dict[str, Array]
    rows: int
    outputs: tuple[str, ...] | None
    id: str | None
    binary: frozenset[str] = frozenset()
    size: int = field(init=False, default=0)
    began: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        for array in self.inputs.values():
            self.size += array.nbytes
