"""Several processes that share a server's ports: real ones, and what their supervisor tells of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import psutil
import pytest
from tests.unit.cli.test_serve import asked, serving, winner
from tests.unit.server.certificates import Authority
from tests.unit.server.serving import BODY, SLOW, Server, SlowServer, answers_with, metric
from tests.unit.server.test_replay import RULE, SURE, TOKEN, ask, serve, told, wait_for
from tests.unit.server.test_slow_model import Loading
from tests.unit.server.test_tls import INFER, message, trusting

from fettle.server import pod_state
from fettle.server.link import SupervisorEnd
from fettle.server.management import SILENCE_SECONDS, Management
from fettle.server.pod_state import PodState, WorkerState
from fettle.server.samples import unpack
from fettle.server.settings import ServerSettings
from fettle.server.state import Condition, NotTold

PROCESSES = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("pod"), processes=PROCESSES, connection_max_requests=1000)
    yield started
    started.stop()


def workers(server: Any) -> list[psutil.Process]:
    """The processes that answer requests."""
    return psutil.Process(server.process.pid).children()


def until(what: str, holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def ports_of(worker: psutil.Process, port: int) -> set[int]:
    """The clients' ports of a worker's connections on `port`."""
    found = worker.net_connections("tcp")
    return {each.raddr.port for each in found if each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED}


@contextlib.contextmanager
def connected(server: Any, count: int) -> Iterator[list[httpx.Client]]:
    """So many connections, each of which has had an answer."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client()) for _ in range(count)]
        for client in clients:
            assert client.get(f"http://127.0.0.1:{server.port}/v2/health/live").status_code == 200
        yield clients


def counted(server: Server) -> tuple[int, int]:
    """Requests and answers of the window."""
    windows = httpx.get(f"{server.admin}/fettle/window?since=0").json()["windows"]
    return sum(w["requests"] for w in windows), sum(sum(w["buckets"].values()) for w in windows)


def test_every_process_answers_and_counts_are_exact_over_all_of_them(server: Server) -> None:
    before, others = answers_with(server, 200), metric(server, "fettle_server_requests_total")
    requests, answers = counted(server)
    with connected(server, 40) as clients:
        shares = [len(ports_of(worker, server.port)) for worker in workers(server)]
        for _ in range(5):
            for client in clients:
                assert client.post(f"{server.url}/infer", json=BODY).status_code == 200
    assert len(shares) == PROCESSES and min(shares) > 0 and sum(shares) == 40
    for _ in range(20):
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}", (("grpc.use_local_subchannel_pool", 1),)) as channel:
            channel.unary_unary(INFER)(message(), timeout=30)
    until("the second is not over", lambda: counted(server)[0] >= requests + 220)
    assert counted(server) == (requests + 220, answers + 220)
    assert answers_with(server, 200) == before + 220 + 40, "and the questions of health"
    assert metric(server, "fettle_server_requests_total") == others + 220 + 40
    assert metric(server, "fettle_server_request_seconds_count") == requests + 220


def test_each_port_of_the_protocol_is_listened_on_by_all_and_the_management_port_by_one(server: Server) -> None:
    def listen(process: psutil.Process) -> set[int]:
        return {each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}

    supervisor = psutil.Process(server.process.pid)
    assert listen(supervisor) == {server.management}
    assert [listen(worker) for worker in workers(server)] == PROCESSES * [{server.port, server.grpc}]


def test_samples_are_drawn_from_every_process_and_handed_out_once(tmp_path: Path) -> None:
    """Two are kept: one in each process."""
    server = serve(tmp_path, "stable", rule=RULE, samples=2, processes=PROCESSES)
    headers = {"Authorization": f"Bearer {TOKEN}", "fettle-revision": "canary"}

    def taken() -> int:
        return len(unpack(httpx.post(f"{server.admin}/fettle/samples", headers=headers).content)[1])

    def both() -> bool:
        ask(server, SURE, 1)
        return metric(server, "fettle_server_samples") == 2

    try:
        until("no second process has kept a sample", both)
        assert [taken(), taken(), taken()] == [1, 1, 0]
        assert metric(server, "fettle_server_samples") == 0
    finally:
        server.stop()


def test_a_canary_of_several_processes_compares_each_sample_once(tmp_path: Path) -> None:
    stable = serve(tmp_path / "stable", "stable", rule=RULE, processes=PROCESSES)
    until("too few samples", lambda: ask(stable, SURE, 4) or metric(stable, "fettle_server_samples") >= 8)
    kept = metric(stable, "fettle_server_samples")
    canary = serve(tmp_path / "canary", "canary", stable, processes=PROCESSES)
    try:
        assert wait_for(canary, int(kept)) == {"agreed": kept}
        assert told(canary)[1] == {"stable": "stable"}
        assert metric(canary, "fettle_server_compared_items_total") == kept
        assert metric(stable, "fettle_server_samples") == 0
    finally:
        canary.stop()
        stable.stop()


class Clients:
    """Clients that ask over kept connections, and anew once they are told to, until they are stopped; `lost`: what got no good answer."""

    def __init__(self, server: Server, count: int) -> None:
        self.answered, self.lost = 0, list[str]()
        self._url, self._lock, self._leaving = f"{server.url}/infer", threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with httpx.Client() as client:
            while not self._leaving.is_set():
                try:
                    answer = client.post(self._url, json=BODY)
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    self.lost.append(repr(error))
                    return
                with self._lock:
                    self.answered += 1

    def leave(self) -> None:
        """Ask no more, as clients of a pod that is in no route any longer."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(60)


def test_a_drain_under_load_loses_no_request_and_ends_every_process(tmp_path: Path) -> None:
    server = Server(tmp_path, processes=PROCESSES, drain_seconds=5)
    own = workers(server)
    clients = Clients(server, 16)
    try:
        until("no load", lambda: clients.answered > 200)
        server.process.send_signal(signal.SIGTERM)
        until("still ready", lambda: httpx.get(f"{server.admin}/readyz").status_code == 503)
        before = clients.answered
        until("requests are not answered meanwhile", lambda: clients.answered > before + 100)
        clients.leave()
        assert server.process.wait(30) == 0
        assert clients.lost == []
        assert not any(worker.is_running() for worker in own)
    finally:
        clients.leave()
        server.process.kill()


class Logged:
    """A file that a server logs into."""

    def __init__(self, path: Path) -> None:
        self.path, self.stream = path, path.open("w")

    def text(self) -> str:
        return self.path.read_text()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Logged]:
    made = Logged(tmp_path / "log")
    yield made
    made.stream.close()


def test_a_process_that_is_killed_ends_the_pod_with_an_error_and_what_others_work_on_is_answered(
    tmp_path: Path, log: Logged
) -> None:
    server = SlowServer(tmp_path, log=log.stream.fileno(), processes=PROCESSES)
    url = f"http://127.0.0.1:{server.port}/v2/models/slow/infer"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": SLOW}
    answers: list[int] = []
    try:
        with connected(server, 1) as (client,):
            (mine,) = (worker for worker in workers(server) if ports_of(worker, server.port))
            (other,) = (worker for worker in workers(server) if worker != mine)
            used = mine.cpu_times().user
            asking = threading.Thread(
                target=lambda: answers.append(client.post(url, json={"inputs": [tensor]}, timeout=60).status_code)
            )
            asking.start()
            until("the model does not run", lambda: mine.cpu_times().user > used + 0.2)
            other.kill()
            assert server.process.wait(60) == 1
            asking.join(60)
        assert answers == [200]
        assert not mine.is_running()
        assert "process " in log.text() and " of 2 was ended by SIGKILL; see the server's log" in log.text()
        assert "Traceback" not in log.text()
    finally:
        server.process.kill()


def test_a_process_that_drains_by_itself_takes_the_pod_out_of_service_and_the_others_with_it(
    tmp_path: Path, log: Logged
) -> None:
    server = Server(tmp_path, log=log.stream.fileno(), processes=PROCESSES, drain_seconds=1)
    try:
        workers(server)[0].terminate()
        assert server.process.wait(60) == 1
        assert " of 2 ended, although nobody told it to" in log.text()
    finally:
        server.process.kill()


def test_processes_whose_supervisor_is_gone_end(tmp_path: Path) -> None:
    server = Server(tmp_path, processes=PROCESSES)
    own = workers(server)
    server.process.kill()
    server.process.wait(30)
    _, alive = psutil.wait_procs(own, timeout=60)
    assert alive == []


class LoadingPod(Loading):
    """As it, in several processes."""

    def __init__(self, root: Path) -> None:
        SlowServer.__init__(self, root, {"warm": [1e7, 0.0, 0.0, 0.0]}, drain_seconds=60, processes=PROCESSES)


def test_a_pod_that_is_told_to_end_while_its_models_load_ends_at_once(tmp_path: Path) -> None:
    server = LoadingPod(tmp_path)
    try:
        assert httpx.get(f"{server.admin}/healthz").status_code == 200
        assert httpx.get(f"{server.admin}/metrics").status_code == 503
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    finally:
        server.process.kill()


def test_a_model_that_no_process_can_load_is_one_error_with_its_reason(tmp_path: Path) -> None:
    server = Server(tmp_path, processes=PROCESSES)
    server.stop()
    model = next((tmp_path / "model" / "model").iterdir())
    model.chmod(0o644)
    model.write_bytes(b"something else")
    done = server.run("serve")
    errors = [line for line in done.stderr.splitlines() if line.startswith("ArtifactTampered: ")]
    assert (done.returncode, len(errors)) == (1, 1), done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_another_program_holds_is_an_error(tmp_path: Path) -> None:
    server = Server(tmp_path, processes=PROCESSES)
    server.stop()
    with socket.create_server(("127.0.0.1", server.grpc)):
        done = server.run("serve")
    assert done.returncode == 1
    assert " of 2 ended with status 1; see the server's log" in done.stderr


def test_all_processes_share_a_port_with_tls_too(tmp_path: Path) -> None:
    authority = Authority()
    server = Server(tmp_path, tls_folder=authority.issue(tmp_path / "tls"), processes=PROCESSES)
    url, context = f"https://127.0.0.1:{server.port}/v2/models/lookup/infer", trusting(authority)
    try:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(httpx.Client(verify=context)) for _ in range(24)]
            assert {client.post(url, json=BODY).status_code for client in clients} == {200}
            assert all(ports_of(worker, server.port) for worker in workers(server))
    finally:
        server.stop()


def test_the_log_level_is_that_of_all_processes(tmp_path: Path, log: Logged) -> None:
    server = Server(tmp_path, log=log.stream.fileno(), processes=PROCESSES)

    def told_of() -> int:
        return log.text().count("a request ended with OK")

    try:
        with connected(server, 24) as clients:
            assert all(ports_of(worker, server.port) for worker in workers(server))
            for level, lines in (("debug", 24), ("info", 24)):
                assert httpx.post(f"{server.admin}/fettle/log?level={level}").status_code == 200
                for client in clients:
                    client.post(f"{server.url}/infer", json=BODY)
                until("a line is missing", lambda lines=lines: told_of() >= lines)
                assert told_of() == lines
        assert httpx.post(f"{server.admin}/fettle/log?level=chatty").status_code == 400
    finally:
        server.stop()


# ------------------------------------------------------------------------------------------------ a process that does not answer


class HeldTime:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


async def test_a_process_that_hangs_is_found_by_its_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    held, (ours, theirs) = HeldTime(), Pipe()
    monkeypatch.setattr(pod_state, "time", held)
    monkeypatch.setattr(pod_state, "LOOK_SECONDS", 0)
    monkeypatch.setattr(pod_state, "ANSWER_SECONDS", 0.05)
    ready, state = asyncio.Event(), PodState()
    worker = WorkerState(SupervisorEnd(ours), ready.set)
    state.workers = [worker]
    watching = asyncio.create_task(worker.watch())
    port = Management(ServerSettings(), state)

    async def answer(path: str) -> tuple[int, bytes]:
        status, _, body = await port._answer(SimpleNamespace(path=path, query_string=""))
        return status, body

    assert await answer("/readyz") == (503, b"the model is loading\n")
    number, question, _ = await asyncio.to_thread(theirs.recv)
    assert question == "state"
    theirs.send((number, True, (Condition.READY, 2.0)))
    await ready.wait()
    assert await answer("/readyz") == (200, b"ready\n")
    assert await answer("/healthz") == (200, b"ok\n")
    held.now += SILENCE_SECONDS
    assert await answer("/healthz") == (503, b"the data port's event loop has been blocked for 62 s\n")
    with pytest.raises(NotTold, match=r"a process did not answer within 0\.05 s"):
        await state.metrics()
    theirs.close()
    await watching
    assert await answer("/readyz") == (503, b"draining\n")
    with pytest.raises(NotTold, match="a worker has ended"):
        await state.window(0)


# ------------------------------------------------------------------------------------------------------------ on one machine


def test_fettle_serve_takes_several_processes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FETTLE_SERVER_PROCESSES", str(PROCESSES))
    with serving(str(winner(tmp_path))) as (process, (what, command)):
        assert what.startswith("winner: portable in onnxruntime, HTTP on 127.0.0.1:")
        assert len(psutil.Process(process.pid).children()) == PROCESSES
        assert asked(command)["model_name"] == "winner"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=120)
        assert (process.returncode, out, error) == (0, "", "")
