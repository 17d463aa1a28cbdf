"""Replay: a canary fetches recent samples from stable pods, runs them, and counts how many answers agree.

All of this happens in one thread with the lowest priority, one item at a time, within a share of the pod's CPU. A request that arrives
interrupts the current run (`ServedModel.replay`). Samples are held in memory only while they wait. In a pod of the stable revision there is
nothing to compare, so the thread ends.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.text import clip, error_text
from fettle.api.window import Agreement, Problem
from fettle.errors import DataError, RuntimeFailure
from fettle.runtimes import cpu
from fettle.server.model import ServedModel
from fettle.server.samples import Sample, SamplesHead, as_batch, received
from fettle.server.settings import ServerSettings
from fettle.server.tls import AUTHORITY, CERTIFICATE, is_valid_for, leaf
from fettle.store.comparison import Outcome, compare

log = logging.getLogger(__name__)

PATH = "/fettle/samples"
PAUSE_SECONDS = 1.0  # between two times that stable is asked
PATIENCE_SECONDS = 10.0  # a stable pod that is on its way out answers nobody; only then it is said
TIMEOUT_SECONDS = 5.0  # for the whole of an answer
MOST_BYTES = 16 << 20  # of one answer: more than a pod sends, whatever names and texts are in it
ATTEMPTS = 200  # after so many interrupted runs an item is given up: this pod has no time for it
BREATH_SECONDS = 0.002  # at least, between two runs


class Trouble(Exception):
    """Answers cannot be compared now; the message says why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class Exchange:
    """Requests samples from the stable revision's pods, one pod at a time, in turn.

    A pod with TLS asks with TLS only, and only pods whose certificate it can verify, with the name of their Service where its own has it: whoever
    cuts or answers its connections in their place gets neither its token nor a say in what it is compared with. A pod without TLS asks with it
    first, so that no pod with TLS is sent the token in the clear. `clear`: pods without TLS, as a pod without it found out.
    """

    settings: ServerSettings
    clear: set[tuple[str, int]] = field(default_factory=set)

    def addresses(self) -> list[tuple[str, int]]:
        """The addresses of the stable revision's ready pods. Raises Trouble."""
        host, _, port = self.settings.stable.rpartition(":")
        try:
            number = int(port)
            resolved = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            message = f"cannot resolve {host}: no pod of the stable revision is ready, or DNS does not work ({error})"
            raise Trouble(Reason.ANALYSIS_UNREACHABLE, message) from error
        return sorted({(entry[4][0], number) for entry in resolved})  # type: ignore[misc]

    def take(self, address: tuple[str, int]) -> tuple[SamplesHead, list[Sample]]:
        """The samples that a pod returns. Raises Trouble."""
        where = f"stable pod {address[0]}"
        try:
            status, body = self._ask(address)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.clear.discard(address)  # another pod may have it by now
            advice = _advice(error) if self.settings.tls_folder is not None else ""
            message = f"{where}: {error_text(error)}{advice}"
            raise Trouble(Reason.ANALYSIS_UNREACHABLE, message) from error
        try:
            return received(status, body)
        except ValueError as error:
            raise Trouble(Reason.ANALYSIS_UNREACHABLE, f"{where} returned no samples: {error}") from error

    def _ask(self, address: tuple[str, int]) -> tuple[int, bytes]:
        """Status and body of the response."""
        connection = self._connected(address)
        try:
            with _hanging_up(connection.sock, TIMEOUT_SECONDS):
                connection.request("POST", PATH, headers=self._headers())
                response = connection.getresponse()
                return response.status, response.read(MOST_BYTES)
        finally:
            connection.close()

    def _connected(self, address: tuple[str, int]) -> http.client.HTTPConnection:
        if self.settings.tls_folder is not None:
            return _opened(address, _verifying(self.settings.tls_folder, self._service), self._service)
        if address not in self.clear:
            try:
                return _opened(address, _encrypting())
            except (ssl.SSLError, ConnectionError):  # it has no TLS either
                self.clear.add(address)
        return _opened(address)

    @property
    def _service(self) -> str:
        """The name of the Service in front of the pods of all revisions, in the namespace of the one that `stable` names."""
        host, _, _ = self.settings.stable.rpartition(":")
        return f"{self.settings.model}.{host.partition('.')[2]}"

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {read_token(self.settings.samples_token)}",
            "fettle-revision": self.settings.revision,
        }


def _advice(error: Exception) -> str:
    """What to do about the error of a pod with TLS, as the end of a message."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"; expected a certificate that {AUTHORITY} of this revision's TLS Secret verifies, for the Service's name if that Secret's is, "
            f"or without {AUTHORITY}, the certificate of that Secret"
        )
    if isinstance(error, ssl.SSLError | ConnectionResetError):
        return "; this revision asks for samples over TLS only: if stable has no server.tls, judge this revision without agreement, or promote it"
    return ""


def _opened(
    address: tuple[str, int], context: ssl.SSLContext | None = None, name: str | None = None
) -> http.client.HTTPConnection:
    """A connection to a pod; with a `context`, over TLS, to who is called `name` where the context checks that."""
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_SECONDS)
    connection.connect()
    if context is not None:
        connection.sock = context.wrap_socket(connection.sock, server_hostname=name)
    return connection


def _encrypting() -> ssl.SSLContext:
    """For a pod that has nothing with which to verify another one's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _verifying(folder: Path, service: str) -> ssl.SSLContext:
    """For certificates that the authority in the pod's own Secret has signed, or without an authority there, for the Secret's own certificate.

    Pods are addressed by IP, which no certificate contains. An authority may sign for others too, so a pod whose own certificate is valid for the
    name of its `service` believes no certificate without that name.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    own = leaf((folder / CERTIFICATE).read_text(errors="replace"))
    context.check_hostname = is_valid_for(own, service)
    authority = folder / AUTHORITY
    if authority.is_file() and authority.stat().st_size:
        context.load_verify_locations(authority)
    else:
        context.load_verify_locations(cadata=own)  # not those that signed it, which may have signed others' as well
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


@contextlib.contextmanager
def _hanging_up(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Close the connection after `seconds`. The socket's own timeout applies to each read, so a slow sender could otherwise continue forever."""

    def hang_up() -> None:
        with contextlib.suppress(OSError):  # it ended by itself
            connection.shutdown(socket.SHUT_RDWR)

    limit = threading.Timer(seconds, hang_up)
    limit.start()
    try:
        yield
    finally:
        limit.cancel()


def read_token(path: Path) -> str:
    """The current token: the kubelet updates the file when the Secret changes. Raises Trouble if there is none."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        token = ""
    if not token.isprintable() or not token:
        message = (
            f"no token in {path}: the ModelDeployment's samples Secret is missing; the next revision will have one"
        )
        raise Trouble(Reason.ANALYSIS_UNREACHABLE, message)
    return token


class Replay:
    """See the module. `count` is called in the replay's own thread with each outcome and its duration in seconds."""

    def __init__(
        self, settings: ServerSettings, model: ServedModel, count: Callable[[Outcome | None, float], None]
    ) -> None:
        self._settings, self._model, self._count = settings, model, count
        self._exchange = Exchange(settings)
        self._cores = settings.replay_share * min(cpu.quota(), model.manifest.settings.threads or 1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._turns: deque[tuple[str, int]] = deque()
        self._answered_at = time.monotonic()
        self._trouble: Trouble | None = None
        self._stable: str | None = None

    def start(self) -> None:
        """Start the thread, unless there is no address of the stable revision."""
        if self._settings.stable:
            self._thread.start()

    def stop(self) -> None:
        """Stop after the current item."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def state(self) -> Agreement | None:
        """The state for the window: the stable revision, and the problem that prevents a comparison, if any. None: nothing is compared."""
        if not self._settings.stable:
            return None
        trouble = self._trouble
        silent = trouble is not None and trouble.reason is Reason.ANALYSIS_UNREACHABLE
        if silent and time.monotonic() - self._answered_at < PATIENCE_SECONDS:
            trouble = None
        problem = None if trouble is None else Problem(reason=trouble.reason, message=clip(trouble.message))
        return Agreement(stable=self._stable, problem=problem)

    def _run(self) -> None:
        _lowest_priority()
        while not self._stop.is_set() and self._stable != self._settings.revision:
            began = time.monotonic()
            try:
                self._round()
            except Trouble as trouble:
                if self._trouble is None or self._trouble.message != trouble.message:
                    log.info("answers are not compared: %s", trouble.message)
                self._trouble = trouble
            except Exception as error:  # this thread must not end unnoticed
                log.exception("comparing answers failed")
                message = f"comparing answers failed: {error_text(error)}"
                self._trouble = Trouble(Reason.ANALYSIS_INCONCLUSIVE, message)
            self._stop.wait(max(0.0, PAUSE_SECONDS - (time.monotonic() - began)))

    def _round(self) -> None:
        """Fetch samples from the next pod, and compare them."""
        known = self._exchange.addresses()
        self._turns = deque(address for address in self._turns if address in known) or deque(known)
        head, samples = self._exchange.take(self._turns.popleft())
        self._answered_at = time.monotonic()
        self._stable = head.revision
        if head.revision == self._settings.revision:
            self._trouble = None
            return
        check(head, self._model.signature)
        self._trouble = None
        for sample in samples:
            if self._stop.is_set():
                return
            self._compare(head, sample)

    def _compare(self, head: SamplesHead, sample: Sample) -> None:
        inputs = as_batch(self._model.signature, sample.inputs)
        for _ in range(ATTEMPTS):
            began, used = time.perf_counter(), time.process_time()
            outcome = self._outcome(head, sample, inputs)
            took, spent = time.perf_counter() - began, time.process_time() - used
            self._count(outcome, took)
            # By CPU time, what requests used meanwhile included: on a busy node a run takes long and costs little.
            self._stop.wait(max(spent / self._cores - took, BREATH_SECONDS))
            if outcome is not None or self._stop.is_set():
                return

    def _outcome(self, head: SamplesHead, sample: Sample, inputs: dict[str, Any]) -> Outcome | None:
        """The outcome for one sample; None if a request interrupted the run."""
        try:
            outputs = self._model.replay(inputs)
            if outputs is None:
                return None
            mine = as_item(self._model.signature, outputs)
            return compare(head.comparisons, sample.outputs, mine)
        except (RuntimeFailure, DataError) as error:  # the stable revision did answer it
            log.info("a sample that stable could answer failed here: %s", error.message)
            return Outcome.DISAGREED


def as_item(signature: Signature, outputs: dict[str, Any]) -> dict[str, Any]:
    """The answer to the one item of a batch."""
    if not signature.batchable:
        return outputs
    return {tensor.name: outputs[tensor.name].take(0, axis=tensor.batch_axis) for tensor in signature.outputs}


def check(head: SamplesHead, own: Signature) -> None:
    """Raises Trouble (AnalysisInconclusive) with the cause if the answers of the two revisions cannot be compared."""

    def refuse(why: str) -> Trouble:
        return Trouble(Reason.ANALYSIS_INCONCLUSIVE, f"{why}; judge this revision without agreement, or promote it")

    if not head.comparisons:
        raise refuse(
            "the stable revision's artifact has no rule for comparing answers: it is from an older version of Fettle"
        )
    tasks = {rule.judged_by for rule in head.comparisons.values()}
    if None not in tasks:
        metric = ", ".join(sorted(str(task) for task in tasks))
        raise refuse(
            f"analysis.agreement does not apply to a model that was certified by metric {metric}: its numbers may "
            "differ although their meaning is the same"
        )
    inputs, outputs = _by_name(own.inputs), _by_name(own.outputs)
    theirs = _by_name(head.signature.outputs)
    pairs = [(tensor, inputs.get(tensor.name)) for tensor in head.signature.inputs]
    compared = [name for name, rule in head.comparisons.items() if rule.judged_by is None]
    pairs += [(theirs[name], outputs.get(name)) for name in compared if name in theirs]
    for tensor, mine in pairs:
        if mine is None or not _same_form(tensor, mine):
            own_tensor = f"{mine.dtype} {list(mine.shape)}" if mine is not None else "no such tensor"
            raise refuse(f"stable has {tensor.name} {tensor.dtype} {list(tensor.shape)}, this revision {own_tensor}")
    more = sorted(inputs.keys() - {tensor.name for tensor in head.signature.inputs})
    if more or head.signature.batchable != own.batchable:
        raise refuse(
            f"this revision has inputs that stable does not have: {more}"
            if more
            else "only one of the two revisions accepts batches"
        )


def _by_name(tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in tensors}


def _same_form(tensor: Tensor, other: Tensor) -> bool:
    if (tensor.dtype, tensor.batch_axis, len(tensor.shape)) != (other.dtype, other.batch_axis, len(other.shape)):
        return False
    return all(
        axis == tensor.batch_axis or -1 in (left, right) or left == right
        for axis, (left, right) in enumerate(zip(tensor.shape, other.shape, strict=True))
    )


def _lowest_priority() -> None:
    """Set the lowest priority for this thread. On Linux, each thread has its own priority, and threads that it starts inherit it."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    except OSError as error:
        log.info("replays run at normal priority: %s", error)
