"""Local copies of the API server's objects, kept up to date by watches. The terms are those of client-go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from types import TracebackType
from typing import Any

from kubernetes import watch
from kubernetes.client.rest import ApiException

from fettle.cli.access.cluster import DEPLOYMENTS, MODELS, Cluster, Listing, Object, api_errors
from fettle.errors import ClusterError, MissingError

# The API server ends a watch after WATCH_SECONDS; a connection that says nothing for READ_SECONDS is one that somebody forgot.
WATCH_SECONDS, READ_SECONDS, CONNECT_SECONDS = 30, 45, 5
LONGEST_PAUSE_SECONDS = 8.0
STOP_SECONDS = 1.0  # for a thread to end; longer takes only one that waits for an API server that does not answer
PODS = "pods"


class Reflector:
    """Keeps the objects of one listing: lists them, then watches from that version on.

    A watch that ends is resumed where it ended; if that version is too old by then (410), everything is listed again.
    Failures are retried. From the second failure in a row until a watch is open again, `problem` holds the error.
    """

    def __init__(self, listing: Listing, changed: Callable[[], None]) -> None:
        """`changed` is called, in another thread, whenever `objects` or `problem` changes."""
        self.objects: dict[str, Object] = {}
        self.problem: ClusterError | None = None
        self._listing = listing
        self._changed = changed
        self._version: str | None = None
        self._failures = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=listing.what, daemon=True)
        self._response: Any = None  # urllib3's, of the watch that is open

    def list(self) -> None:
        """Read everything once. Raises ClusterError."""
        with api_errors(self._listing.what):
            listing = self._listing(_request_timeout=(CONNECT_SECONDS, READ_SECONDS))
        self.objects = {item["metadata"]["name"]: item for item in listing["items"]}
        self._version = listing["metadata"]["resourceVersion"]

    def start(self) -> None:
        """Follow the listed objects in a separate thread."""
        self._thread.start()

    def stop(self) -> None:
        """Start no new requests, and close the open watch."""
        self._stopped.set()
        if self._response is not None:
            _hang_up(self._response)

    def join(self) -> None:
        """Wait for its thread: an interpreter that exits while other threads still run may abort."""
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopped.wait(_pause(self._failures)):
            try:
                if self._version is None:
                    self.list()
                    self._changed()
                self._watch()
            except ClusterError as error:
                self._version = None
                self._failures += 1
                if self._failures > 1:
                    self.problem = error
                    self._changed()

    def _watch(self) -> None:
        with api_errors(self._listing.what):
            try:
                for event in watch.Watch(return_type="object").stream(  # plain dicts
                    self._open,
                    resource_version=self._version,
                    timeout_seconds=WATCH_SECONDS,
                    allow_watch_bookmarks=True,
                    _request_timeout=(CONNECT_SECONDS, READ_SECONDS),
                ):
                    if self._stopped.is_set():
                        return
                    self._take(event["type"], event["object"])
            except ApiException as error:
                if error.status != HTTPStatus.GONE:
                    raise
                self._version = None

    def _open(self, **options: Any) -> Any:
        response = self._response = self._listing.call(**options)
        if self._stopped.is_set():  # too late for stop() to see it
            _hang_up(response)
        if response.status == HTTPStatus.OK:
            self._failures = 0
            if self.problem is not None:
                self.problem = None
                self._changed()
        return response

    def _take(self, kind: str, resource: Object) -> None:
        self._version = resource["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return
        name = resource["metadata"]["name"]
        others = {key: value for key, value in self.objects.items() if key != name}
        self.objects = others if kind == "DELETED" else {**others, name: resource}  # whole: another thread reads it
        self._changed()


def _hang_up(response: Any) -> None:
    """End the response at once for the thread that reads it."""
    with suppress(OSError, RuntimeError, ValueError):  # it is over already
        response.shutdown()


def _pause(failures: int) -> float:
    """Seconds before the next attempt. The first comes at once, because connections end now and then."""
    return 0.0 if failures < 2 else min(2.0 ** (failures - 2), LONGEST_PAUSE_SECONDS)


class Watched:
    """The current objects of one name in a namespace: those of the requested kinds, and the serving pods."""

    def __init__(self, cluster: Cluster, name: str, kinds: Sequence[str] = (DEPLOYMENTS, MODELS)) -> None:
        self.changed = threading.Event()  # set at each change; for the reader to clear
        self._name = name
        self._listings = {plural: cluster.listing(plural, name) for plural in kinds}
        self._pods = cluster.pod_listing(name) if DEPLOYMENTS in kinds else None
        self._reflectors: dict[str, Reflector] = {}
        self._seen: set[str] = set()

    def __enter__(self) -> Watched:
        """Raises ClusterError if nothing can be read."""
        for plural, listing in self._listings.items():
            with suppress(MissingError):  # a cluster that does not know the kind
                self._reflect(plural, listing)
        with suppress(ClusterError):  # whoever may see a ModelDeployment need not see pods
            if self._pods is not None:
                self._reflect(PODS, self._pods)
        for reflector in self._reflectors.values():
            reflector.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for reflector in self._reflectors.values():
            reflector.stop()
        for reflector in self._reflectors.values():
            reflector.join()

    def _reflect(self, what: str, listing: Listing) -> None:
        reflector = Reflector(listing, self.changed.set)
        reflector.list()
        self._reflectors[what] = reflector

    def object(self, plural: str) -> Object | None:
        """The object of that kind, if there is one."""
        resource = self._reflectors[plural].objects.get(self._name) if plural in self._reflectors else None
        if resource is not None:
            self._seen.add(plural)
        return resource

    @property
    def pods(self) -> Sequence[Object] | None:
        """The pods; None if the user may not list them."""
        return list(self._reflectors[PODS].objects.values()) if PODS in self._reflectors else None

    @property
    def deleted(self) -> list[str]:
        """The kinds (in the plural) whose object existed and has been deleted."""
        return sorted(plural for plural in self._seen if self.object(plural) is None)

    @property
    def problem(self) -> ClusterError | None:
        """Why the local copies may be out of date; None if they are not."""
        return next(
            (reflector.problem for reflector in self._reflectors.values() if reflector.problem is not None), None
        )
