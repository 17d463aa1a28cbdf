"""The link between a pod's supervisor and one of its workers: a pair of sockets, over which the supervisor asks and the worker answers.

A worker answers in a thread of its own, so that it is heard while its event loop is busy. Each side learns from the link that the other is gone: a
worker without a supervisor drains and ends, as if it had been told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from fettle.errors import FettleError
from fettle.server import logs
from fettle.server.state import NotTold, ProcessState

log = logging.getLogger(__name__)
MOST_UNANSWERED = 16  # questions to a worker
_UNASKED = 0  # the number of what a worker says by itself: the error that ends it


class LinkClosed(NotTold):
    """The worker is gone, or has no answer; the message says which."""


def _packed(answer: tuple[int, bool, Any]) -> memoryview:
    """What `Connection.send` would send. What cannot be pickled fails here, and not in the midst of sending."""
    return ForkingPickler.dumps(answer)


class WorkerEnd:
    """A worker's end of the link. For the worker it takes the place of the management port (`process.py`)."""

    done: asyncio.Future[None]

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def open(self, state: ProcessState) -> WorkerEnd:
        """Answer the supervisor's questions from now on, from `state`. `done` completes when the supervisor is gone."""
        self._loop = asyncio.get_running_loop()
        self.done = self._loop.create_future()
        threading.Thread(target=self._answer_all, args=(state,), name="link", daemon=True).start()
        return self

    def stop(self) -> None:
        """The worker ends. Questions are answered as long as it is there."""
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: FettleError) -> None:
        """Say why the worker ends."""
        with contextlib.suppress(OSError):  # the supervisor is gone
            self._send(_packed((_UNASKED, True, (error.reason, error.message))))

    def _answer_all(self, state: ProcessState) -> None:
        answers: dict[str, Callable[..., Any]] = {
            "state": lambda: (state.condition, state.silence()),
            "metrics": state.told_metrics,
            "window": state.told_window,
            "samples": state.told_samples,
            "level": logs.set_level,
        }
        try:
            while True:
                number, question, arguments = self._connection.recv()
                try:
                    answer = _packed((number, True, answers[question](*arguments)))
                except NotTold as error:
                    answer = _packed((number, False, str(error)))
                except Exception as error:  # the thread must not end unnoticed
                    log.exception("the supervisor's question %r failed", question)
                    answer = _packed((number, False, f"{type(error).__name__}: {error}"))
                self._send(answer)
        except (EOFError, OSError):
            log.info("the supervisor is gone")
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.stop)

    def _send(self, answer: memoryview) -> None:
        with self._sending:
            self._connection.send_bytes(answer)


class SupervisorEnd:
    """The supervisor's end of the link to one worker. Used by its event loop; a thread listens."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(_UNASKED + 1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._unanswered = 0  # also those that nobody waits for any more
        self.closed = self._loop.create_future()
        self.failure: FettleError | None = None  # that ended the worker
        threading.Thread(target=self._listen, name="link", daemon=True).start()

    async def ask(self, question: str, *arguments: Any) -> Any:
        """The worker's answer. Raises LinkClosed."""
        number = next(self._numbers)
        answer = self._asked[number] = self._loop.create_future()
        try:
            if self.closed.done():
                raise LinkClosed("a worker has ended")
            if self._unanswered >= MOST_UNANSWERED:  # which fill the socket: the next question would block this loop
                raise LinkClosed(f"a worker has not answered {self._unanswered} questions")
            self._connection.send((number, question, arguments))
            self._unanswered += 1
            return await answer
        except OSError as error:
            raise LinkClosed(f"a worker has ended: {error}") from error
        finally:
            del self._asked[number]

    def _listen(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            try:
                while True:
                    self._loop.call_soon_threadsafe(self._hear, *self._connection.recv())
            except (EOFError, OSError):
                log.debug("a worker is gone")
            except Exception:  # the thread must not end unnoticed
                log.exception("a worker's answer cannot be read")
            self._loop.call_soon_threadsafe(self._close)

    def _hear(self, number: int, good: bool, content: Any) -> None:
        if number == _UNASKED:
            reason, message = content
            self.failure = FettleError(message, reason=reason)
            return
        self._unanswered -= 1
        answer = self._asked.get(number)
        if answer is None or answer.done():  # nobody waits for it any more
            return
        if good:
            answer.set_result(content)
        else:
            answer.set_exception(LinkClosed(f"a worker has no answer: {content}"))

    def _close(self) -> None:
        self.closed.set_result(None)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(LinkClosed("a worker has ended"))
        self._connection.close()
