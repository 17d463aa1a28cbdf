"""Text within limits: messages must fit into the fields of Kubernetes and of the API."""

from __future__ import annotations

from collections.abc import Iterable

CONDITION_LIMIT = 2048  # bytes of a condition's message; Kubernetes' own would be 32768, which nobody reads
EVENT_LIMIT = 1024  # bytes of an Event's message; the API server refuses more
MESSAGE_LIMIT = 512  # bytes of every other message: candidates, terminations, analysis
QUOTED_LIMIT = 300  # bytes of what a library said, as a part of a message
MARK = " … "
# Stands in messages of a Job, which does not know the name; the operator puts it in.
RETRY_COMMAND = "kubectl fettle retry om/NAME"
WORD = 32  # letters: how far a cut moves to stand between words; what is longer is no word of a person


def clip(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """`text` in at most `limit` bytes of UTF-8. If it is too long, its middle is cut out, between words, because an error starts with what happened
    and ends with the cause. Half a letter, which JSON and names of files may hold, is written as its number: UTF-8 has none."""
    data = text.encode(errors="backslashreplace")
    text = data.decode()
    if len(data) <= limit:
        return text
    room = limit - len(MARK.encode())
    size = room // 3
    head, tail = data[: room - size].decode(errors="ignore"), data[-size:].decode(errors="ignore")
    if " " in head[-WORD:] and not text[len(head)].isspace():
        head = head[: head.rfind(" ")]
    if " " in tail[:WORD] and not text[-len(tail) - 1].isspace():
        tail = tail[tail.find(" ") :]
    return f"{head.rstrip()}{MARK}{tail.lstrip()}"


def quoted(said: object, limit: int = QUOTED_LIMIT) -> str:
    """The text of a library or a person, on one line and in at most `limit` bytes."""
    return clip(" ".join(str(said).split()), limit)


def error_text(error: BaseException) -> str:
    """What an error says; the name of its class if it says nothing, as `TimeoutError()` does."""
    return str(error) or type(error).__name__


def counted(number: int, noun: str) -> str:
    """'1 pod', '2 pods'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def joined(words: Iterable[str], last: str = "and") -> str:
    """'F1, MeanSquaredError and CosineSimilarity'."""
    *others, final = words
    return f"{', '.join(others)} {last} {final}" if others else final


def installing(extra: str) -> str:
    """Advice how to install an extra of pyproject.toml."""
    return f"pip install '.[{extra}]' in a checkout of Fettle"


def percent(share: float, digits: int = 2) -> str:
    """'99.60 %' of 0.996."""
    return f"{100 * share:.{digits}f} %"


def rounded(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits, as people write it: 1,410 and 0.0123, without an exponent from 0.001 up to 10^15."""
    return f"{float(f'{value:.{digits}g}'):,.15g}"


def significant(value: float) -> float:
    """`value` with the four significant digits that a status tells."""
    return float(f"{value:.4g}")


def beyond(value: float, bound: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits, or with more if it would otherwise look equal to the bound that it violates."""
    for places in range(digits, 18):
        if value == bound or float(f"{value:.{places}g}") != float(f"{bound:g}"):
            return rounded(value, places)
    return repr(value)
