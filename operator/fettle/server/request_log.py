"""The request log: a bounded sample of the inputs that clients send, as files in a store that `data.evaluation` reads.

A thread of its own writes, so no request waits for the store. If a file cannot be written, its items are lost, and that is counted.
"""

from __future__ import annotations

import io
import logging
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from fettle.errors import DataError, FettleError, UsageError
from fettle.runtimes.base import Array
from fettle.server.live_items import LiveItems
from fettle.server.metrics import Metrics
from fettle.server.samples import Tensors, byte_size
from fettle.server.settings import ServerSettings
from fettle.store.store import Store
from fettle.store.uris import Mounts

LATEST = "latest.npz"
CHARACTER_BYTES = 4  # in a file's arrays of texts
TEXT_BYTES = 64  # what a text takes in memory beside its characters
TURN_SECONDS = 1.0
_WRITTEN = re.compile(r"\d{8}T\d{6}Z-.+\.npz")

log = logging.getLogger(__name__)


class Reservoir:
    """A sample of items in which each item that was offered is equally likely (algorithm R). It is thread-safe."""

    def __init__(self, most: int, most_bytes: int, rng: random.Random) -> None:
        self._most, self._most_bytes, self._random = most, most_bytes, rng
        self._lock = threading.Lock()
        self._items: list[tuple[Tensors, int]] = []
        self._bytes = self._seen = 0
        self.full = self._large = False

    def offer(self, inputs: Tensors) -> None:
        """Keep the item, perhaps in place of another one."""
        size = sum(map(_memory, inputs.values()))
        with self._lock:
            if size > self._most_bytes:  # it would push out all others, and then itself
                self._large = True
                return
            self._seen += 1
            place = self._random.randrange(self._seen) if self.full else len(self._items)
            if place >= len(self._items) and self.full:
                return
            if self.full:
                self._bytes += size - self._items[place][1]
                self._items[place] = inputs, size
            else:
                self._bytes += size
                self._items.append((inputs, size))
            while self._bytes > self._most_bytes:
                self._drop()
            self.full |= len(self._items) >= self._most

    def _drop(self) -> None:
        """Any one of the items; there is no room for as many."""
        place = self._random.randrange(len(self._items))
        self._items[place], self._items[-1] = self._items[-1], self._items[place]
        self._bytes -= self._items.pop()[1]
        self.full = True

    @property
    def complete(self) -> bool:
        """Whether there are as many items as there may be, or none because there was room for none of them."""
        return self.full or (self._large and not self._items)

    def items(self) -> list[Tensors]:
        """The items."""
        with self._lock:
            return [inputs for inputs, _ in self._items]


def _memory(array: Array) -> int:
    return byte_size(array) + (TEXT_BYTES * array.size if array.dtype == object else 0)


class RequestLog:
    """Samples the items of one process over an interval, and writes them as a file once they are complete and the interval is over."""

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """Raises UsageError if the server takes no samples."""
        if not settings.samples:
            raise UsageError(
                "FETTLE_SERVER_REQUEST_LOG_URI requires FETTLE_SERVER_SAMPLES above 0: requests are logged from samples"
            )
        self._settings, self._metrics, self._clock = settings, metrics, clock
        self._random = rng or random.Random()
        self._most_bytes = settings.request_log_max_bytes // settings.sharers
        self._kept = self._empty()
        self._due = clock() + settings.request_log_interval_seconds
        self._ended = threading.Event()

    def _empty(self) -> Reservoir:
        return Reservoir(self._settings.request_log_max_items, self._most_bytes, self._random)

    def offer(self, inputs: Tensors) -> None:
        """Log an item, if it is chosen."""
        self._kept.offer(inputs)

    def start(self) -> None:
        """Write files from now on."""
        threading.Thread(target=self._run, name="request log", daemon=True).start()

    def stop(self) -> None:
        """Write no other file. What was not complete yet is lost."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(TURN_SECONDS):
            self.turn()

    def turn(self) -> None:
        """Write a file if it is complete and the interval is over."""
        if self._clock() < self._due or not self._kept.complete:
            return
        kept, self._kept = self._kept, self._empty()
        self._due = self._clock() + self._settings.request_log_interval_seconds
        try:
            self._write(kept.items())
        except Exception as error:  # noqa: BLE001  whatever it is, the thread must not end: the next file may be written
            self._metrics.request_log_failures.inc()
            told = error.message if isinstance(error, FettleError) else f"{type(error).__name__}: {error}"
            log.warning("requests could not be logged: %s", told)

    def _write(self, items: list[Tensors]) -> None:
        """Write the file and its copy, and remove the oldest files. Raises StoreError, UsageError, DataError."""
        settings, folder = self._settings, self._settings.request_log_folder
        live = LiveItems(most_characters=self._most_bytes // (CHARACTER_BYTES * settings.request_log_max_items))
        for inputs in items:
            live.add(dict(inputs))
        if not len(live):
            raise DataError("no file can hold any of the sampled items, because they contain infinity or are too large")
        content = io.BytesIO()
        live.write(content, len(items))
        store = Store.open(settings.request_log_uri, Mounts.from_environment())
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{socket.gethostname()}-{os.getpid()}.npz"
        for path in (f"{folder}/{name}", f"{folder}/{LATEST}"):
            store.write_bytes(path, content.getvalue())
        written = [found for found in store.names(folder) if _WRITTEN.fullmatch(found)]
        for old in written[: -settings.request_log_max_files]:
            store.remove(f"{folder}/{old}")
        self._metrics.logged_items.inc(len(live))
        log.info("logged %d of %d sampled items to %s/%s/%s", len(live), len(items), store.uri, folder, name)
