"""What trainings tell while they run: the end of the log of each of their pods, read now and then.

A log is written by whoever runs code in the pod. So little of it is read, and seldom, however often the object is looked at: nothing that a pod
writes may keep the operator busy or make it write a status more often.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from fettle.api.progress import TrainingStatus, progress_in
from fettle.cluster.client import Client
from fettle.cluster.jobs import CONTAINER
from fettle.cluster.kinds import Object
from fettle.errors import ClusterError

PROGRESS_SECONDS = 15.0  # between two times that a log is read
LINES, MOST_BYTES = 50, 64 << 10  # that are read of it
KEPT = 1024  # pods whose newest figures are in memory
logger = logging.getLogger(__name__)


class TrainingLogs:
    """The newest figures of each pod that trains. They live as long as this process: after a restart the log brings them again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._newest: OrderedDict[str, tuple[float, TrainingStatus | None]] = (
            OrderedDict()
        )  # by uid, and when it was read

    async def newest(self, client: Client, pod: Object) -> TrainingStatus | None:
        """What a running pod said last, as far as it is known; None where it has said nothing yet."""
        uid, now = pod["metadata"]["uid"], self._clock()
        read_at, known = self._newest.get(uid, (-math.inf, None))
        if now < read_at + PROGRESS_SECONDS:
            return known
        newest = await _read(client, pod) or known
        self._newest[uid] = now, newest
        self._newest.move_to_end(uid)
        while len(self._newest) > KEPT:
            self._newest.popitem(last=False)
        return newest


async def _read(client: Client, pod: Object) -> TrainingStatus | None:
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    try:
        end = await client.log_end(namespace, name, CONTAINER, LINES, MOST_BYTES)
    except ClusterError as error:
        logger.debug("the log of %s/%s cannot be read: %s", namespace, name, error)
        return None
    reported = (progress_in(line) for line in reversed(end.splitlines()))
    return next((progress for progress in reported if progress is not None), None)
