"""What trainings tell while they run: the log of each of their pods, followed as it is written.

One stream for each pod that trains, opened when somebody first asks and again when it broke; nothing is asked for again and again.
"""

from __future__ import annotations

import asyncio
import logging

from fettle.api.progress import TrainingStatus, progress_in
from fettle.cluster.client import Client
from fettle.cluster.jobs import CONTAINER
from fettle.cluster.kinds import Object
from fettle.errors import ClusterError

STREAMS = 32  # at most: the rest of the connections is for requests. Trainings beyond have no live figures
KEPT = 1024  # newest figures in memory
TAIL = 50  # lines of what was written before, among which the newest figures are
logger = logging.getLogger(__name__)


class TrainingLogs:
    """The newest figures of each pod that trains. They live as long as this process: after a restart the log's tail brings them again."""

    def __init__(self) -> None:
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._newest: dict[str, TrainingStatus] = {}

    def newest(self, client: Client, pod: Object) -> TrainingStatus | None:
        """What a running pod said last; None where it has said nothing yet. From now on its log is followed."""
        uid = pod["metadata"]["uid"]
        if uid not in self._streams and len(self._streams) < STREAMS:
            self._streams[uid] = asyncio.create_task(
                self._follow(client, pod), name=f"log of {pod['metadata']['name']}"
            )
        return self._newest.get(uid)

    async def _follow(self, client: Client, pod: Object) -> None:
        """Until the container ends, or the stream breaks."""
        metadata = pod["metadata"]
        try:
            async for line in client.follow(metadata["namespace"], metadata["name"], CONTAINER, TAIL):
                progress = progress_in(line)
                if progress is not None:
                    self._newest[metadata["uid"]] = progress
                    while len(self._newest) > KEPT:
                        del self._newest[next(iter(self._newest))]
        except ClusterError as error:
            logger.debug("the log of %s/%s cannot be followed: %s", metadata["namespace"], metadata["name"], error)
        finally:
            del self._streams[metadata["uid"]]
