"""TLS on every port of a server process: certificates that are renewed under load, clients that show theirs, tokens, samples."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import orjson
import psutil
import pytest
from cryptography import x509
from tests.unit.server.certificates import PEM, Authority, serial
from tests.unit.server.serving import BODY, Server

from fettle.api.vocabulary import AgreementMode
from fettle.errors import UsageError
from fettle.server import inference_pb2 as pb
from fettle.server import tls
from fettle.server.replay import Exchange, Trouble
from fettle.server.settings import ServerSettings
from fettle.server.tls import Certificate, is_valid_for, leaf
from fettle.store.comparison import Comparison

HEALTH = "/grpc.health.v1.Health/Check"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def trusting(authority: Authority, own: Path | None = None) -> ssl.SSLContext:
    """A client's context: who it trusts, and what it shows."""
    pem = authority.certificate.public_bytes(PEM).decode()
    context = ssl.create_default_context(cadata=pem)
    if own is not None:
        context.load_cert_chain(own / "tls.crt", own / "tls.key")
    return context


def message() -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
    raw = np.array([1, 2, 3, 4], np.float32).tobytes()
    request = pb.ModelInferRequest(model_name="lookup", inputs=[tensor], raw_input_contents=[raw])
    return bytes(request.SerializeToString())


@contextlib.contextmanager
def channel(server: Server, authority: Authority, own: Path | None = None) -> Iterator[grpc.Channel]:
    root = authority.certificate.public_bytes(PEM)
    shown = (
        {"private_key": (own / "tls.key").read_bytes(), "certificate_chain": (own / "tls.crt").read_bytes()}
        if own
        else {}
    )
    options = (("grpc.use_local_subchannel_pool", 1),)
    credentials = grpc.ssl_channel_credentials(root, **shown)
    with grpc.secure_channel(f"127.0.0.1:{server.grpc}", credentials, options) as made:
        yield made


class Load:
    """Clients that ask again and again, and what went wrong."""

    def __init__(self, *asks: Callable[[], None]) -> None:
        self.answered, self.failed = [0] * len(asks), list[str]()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n, ask)) for n, ask in enumerate(asks)]

    def _run(self, number: int, ask: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                ask()
                self.answered[number] += 1
            except Exception as error:  # noqa: BLE001  whatever it is, a good request was lost
                self.failed.append(f"{number}: {error!r}")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def until_each_was_answered(self, times: int) -> None:
        before, until = self.answered.copy(), time.monotonic() + 60
        while any(now < then + times for now, then in zip(self.answered, before, strict=True)):
            assert time.monotonic() < until and not self.failed, self.failed[:3]
            time.sleep(0.01)


def test_a_certificate_is_renewed_on_every_port_and_no_good_request_is_lost(
    tmp_path: Path, authority: Authority
) -> None:
    secret = authority.issue(tmp_path / "tls")
    server = Server(tmp_path, tls_folder=secret, connection_max_requests=40)
    context = trusting(authority)
    url = f"https://127.0.0.1:{server.port}/v2/models/lookup/infer"

    def shown() -> set[int]:
        ports = (server.port, server.grpc, server.management)
        return {serial(ssl.get_server_certificate(("127.0.0.1", port))) for port in ports}

    try:
        metrics = httpx.get(f"{server.admin}/metrics", verify=context).text
        (told,) = re.findall(r"^fettle_server_certificate_expiration_timestamp_seconds\{.*\} (\S+)$", metrics, re.M)
        leaf = x509.load_pem_x509_certificate((secret / "tls.crt").read_bytes())
        assert float(told) == leaf.not_valid_after_utc.timestamp()
        with httpx.Client(verify=context) as kept, channel(server, authority) as rpc:
            infer = rpc.unary_unary(INFER)

            def ask(client: Any) -> None:
                answer = client.post(url, json=BODY)
                assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [1, 2, 3, 4]

            def ask_anew() -> None:
                with httpx.Client(verify=context) as client:
                    ask(client)

            with Load(lambda: ask(kept), ask_anew, lambda: infer(message())) as load:
                for _ in range(3):
                    load.until_each_was_answered(5)
                    before = shown()
                    authority.issue(secret)
                    until = time.monotonic() + 60
                    while len(now := shown()) > 1 or now == before:
                        assert time.monotonic() < until, "the certificate was not renewed"
                        time.sleep(0.05)
                load.until_each_was_answered(5)
        assert load.failed == []
    finally:
        server.stop()


def test_a_certificate_that_cannot_be_used_changes_nothing(tmp_path: Path, authority: Authority) -> None:
    secret = authority.issue(tmp_path / "tls")
    certificate = Certificate(secret)
    assert certificate.renewed() is not None and certificate.renewed() is None
    (secret / "..data" / "tls.crt").write_text("no certificate")
    assert certificate.renewed() is None
    with pytest.raises(UsageError, match=r"expected tls\.crt and tls\.key of one certificate, found: "):
        certificate.context()
    authority.issue(secret)
    assert certificate.renewed() is not None


@pytest.mark.parametrize("days", [-1, 30, 365 * 40], ids=["expired", "soon", "after 2050"])
def test_the_end_of_a_certificates_validity_is_that_of_the_one_that_is_served(
    tmp_path: Path, authority: Authority, days: int
) -> None:
    secret = authority.issue(tmp_path / "tls", days=days)
    leaf = x509.load_pem_x509_certificate((secret / "tls.crt").read_bytes())
    chain = b"Subject: server\n" + (secret / "tls.crt").read_bytes() + (secret / "ca.crt").read_bytes()
    (secret / "..data" / "tls.crt").write_bytes(chain)
    certificate = Certificate(secret)
    assert certificate.context() and certificate.expires == leaf.not_valid_after_utc.timestamp()
    (secret / "..data" / "tls.crt").write_text("no certificate")
    assert certificate.renewed() is None and certificate.expires == leaf.not_valid_after_utc.timestamp()


class Told(logging.Handler):
    """What is logged, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = asyncio.Queue[tuple[str, str]]()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put_nowait((record.levelname, record.getMessage()))


def test_a_name_is_found_in_a_certificate_however_long_it_is(tmp_path: Path, authority: Authority) -> None:
    for letters in (1, 59, 60, 63):
        name = f"{'d' * 63}.{'n' * letters}.svc"
        pem = (authority.issue(tmp_path / str(letters), hosts=[name]) / "tls.crt").read_text()
        assert is_valid_for(leaf(pem), name) and not is_valid_for(leaf(pem), name[1:])


async def test_an_expired_certificate_is_a_warning_at_the_start_and_when_it_is_renewed(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, told = authority.issue(tmp_path / "tls", days=-1), Told()
    leaf = x509.load_pem_x509_certificate((secret / "tls.crt").read_bytes())
    monkeypatch.setattr(tls, "RENEW_SECONDS", 0.01)
    caplog.set_level("INFO", logger=tls.__name__)
    monkeypatch.setattr(logging.getLogger(tls.__name__), "handlers", [told])
    port = tls.TlsPort("127.0.0.1", 0, Certificate(secret), inner=0)
    serving = asyncio.create_task(port.serve())
    async with asyncio.timeout(60):
        since = leaf.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
        expected = f"the certificate of port 0 expired at {since}: put a valid one into the TLS Secret"
        assert await told.lines.get() == ("WARNING", expected)
        authority.issue(secret, days=-2)
        level, message = await told.lines.get()
        assert level == "WARNING" and message != expected
        authority.issue(secret)
        assert await told.lines.get() == ("INFO", "the certificate of port 0 was renewed")
        port.stop()
        await serving


def test_a_server_without_the_certificate_that_it_is_told_of_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    with pytest.raises(RuntimeError, match="exited with 1 before it was ready"):
        Server(tmp_path, tls_folder=tmp_path / "tls")


def test_who_shows_no_certificate_of_the_authority_is_not_let_in(tmp_path: Path, authority: Authority) -> None:
    secret = authority.issue(tmp_path / "tls")
    known, stranger = (
        authority.issue(tmp_path / "known", "client"),
        Authority("else").issue(tmp_path / "stranger", "client"),
    )
    server = Server(tmp_path, tls_folder=secret, tls_clients="true")
    url = f"https://127.0.0.1:{server.port}/v2/models/lookup/infer"
    try:
        assert httpx.post(url, json=BODY, verify=trusting(authority, known)).status_code == 200
        with channel(server, authority, known) as rpc:
            assert rpc.unary_unary(INFER)(message(), timeout=60)
        for own in (None, stranger):
            with pytest.raises(httpx.TransportError):
                httpx.post(url, json=BODY, verify=trusting(authority, own))
            with channel(server, authority, own) as rpc, pytest.raises(grpc.RpcError):
                rpc.unary_unary(INFER)(message(), timeout=3)
        assert httpx.get(f"{server.admin}/readyz", verify=trusting(authority)).status_code == 200, "as a probe asks"
        with pytest.raises(httpx.TransportError):
            httpx.post(url.replace("https", "http"), json=BODY)
    finally:
        server.stop()


def test_nobody_goes_around_tls(tmp_path: Path, authority: Authority) -> None:
    server = Server(tmp_path, tls_folder=authority.issue(tmp_path / "tls"))
    try:
        own = {server.port, server.grpc, server.management}
        listening = psutil.Process(server.process.pid).net_connections("tcp")
        inner = {each.laddr.port for each in listening if each.status == psutil.CONN_LISTEN} - own
        assert len(inner) == 2, "behind the two HTTP ports"
        answers = {
            httpx.post(f"http://127.0.0.1:{port}/v2/models/lookup/infer", json=BODY).status_code for port in inner
        }
        assert answers == {401, 404}
        metrics = httpx.get(f"{server.admin}/metrics", verify=trusting(authority)).text
        assert 'fettle_server_requests_total{code="401",model="lookup",revision="abc123"} 1.0' in metrics
    finally:
        server.stop()


def test_a_client_that_hangs_up_is_not_counted_as_one_without_a_token(tmp_path: Path, authority: Authority) -> None:
    server = Server(tmp_path, tls_folder=authority.issue(tmp_path / "tls"))
    context, body = trusting(authority), orjson.dumps(BODY)
    head = b"POST /v2/models/lookup/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    try:
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                client = context.wrap_socket(connection, server_hostname="127.0.0.1")
                client.sendall(head + body)
                client.close()
        url = f"https://127.0.0.1:{server.port}/v2/models/lookup/infer"
        assert httpx.post(url, json=BODY, verify=context).status_code == 200
        metrics = httpx.get(f"{server.admin}/metrics", verify=context).text
        assert 'code="401"' not in metrics
        assert 'fettle_server_refused_tokens_total{model="lookup",revision="abc123"} 0.0' in metrics
    finally:
        server.stop()


def test_a_token_is_asked_for_over_both_protocols_and_health_is_told_without(
    tmp_path: Path, authority: Authority
) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "alice").write_text("secret-of-alice")
    server = Server(
        tmp_path, tls_folder=authority.issue(tmp_path / "tls"), tokens_folder=tokens, client_max_concurrent=1
    )
    base, context = f"https://127.0.0.1:{server.port}", trusting(authority)
    mine = {"Authorization": "Bearer secret-of-alice"}
    try:
        with httpx.Client(verify=context) as client:
            refused = client.post(f"{base}/v2/models/lookup/infer", json=BODY)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert client.post(f"{base}/v2/models/lookup/infer", json=BODY, headers=mine).status_code == 200
            assert client.get(f"{base}/v2/models/lookup").status_code == 401
            assert client.get(f"{base}/openapi.json", headers=mine).status_code == 200
            assert client.get(f"{base}/v2/health/ready").json() == {"ready": True}
        with channel(server, authority) as rpc:
            with pytest.raises(grpc.RpcError) as raised:
                rpc.unary_unary(INFER)(message(), timeout=60)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert rpc.unary_unary(INFER)(message(), timeout=60, metadata=(("authorization", mine["Authorization"]),))
            assert rpc.unary_unary(HEALTH)(b"", timeout=60) == b"\x08\x01", "SERVING"
        metrics = httpx.get(f"{server.admin}/metrics", verify=context).text
        assert 'fettle_server_requests_total{code="401",model="lookup",revision="abc123"} 3.0' in metrics
        assert 'fettle_server_refused_tokens_total{model="lookup",revision="abc123"} 3.0' in metrics
        (tokens / "alice").write_text("another")
        until = time.monotonic() + 30
        while httpx.post(f"{base}/v2/models/lookup/infer", json=BODY, headers=mine, verify=context).status_code != 401:
            assert time.monotonic() < until, "the token was not rotated"
            time.sleep(0.1)
    finally:
        server.stop()


@pytest.mark.parametrize("own", [True, False], ids=["to one with TLS", "to one without"])
@pytest.mark.parametrize("theirs", [True, False], ids=["from a pod with TLS", "from a pod without"])
def test_samples_go_from_pod_to_pod_over_tls_where_either_has_it_and_to_one_with_it_in_no_other_way(
    tmp_path: Path, authority: Authority, theirs: bool, own: bool
) -> None:
    token, secret = tmp_path / "token", authority.issue(tmp_path / "tls")
    token.write_text("of-the-samples")
    tls = {"tls_folder": secret}
    rule = Comparison(mode=AgreementMode.TOP_ONE)
    stable = Server(tmp_path, rule=rule, samples_token=token, **(tls if theirs else {}))
    try:
        with httpx.Client(verify=trusting(authority)) as client:
            client.post(
                f"{stable.scheme}://127.0.0.1:{stable.port}/v2/models/lookup/infer", json=BODY
            ).raise_for_status()
        exchange = Exchange(ServerSettings(revision="canary", samples_token=token, **(tls if own else {})))
        address = ("127.0.0.1", stable.management)
        if own and not theirs:
            for _ in range(3):
                with pytest.raises(Trouble, match="this revision asks for samples over TLS only"):
                    exchange.take(address)
            return
        head, samples = exchange.take(address)
        assert head.revision == "abc123"
        assert [sample.inputs["x"].tolist() for sample in samples] == [[1, 2, 3, 4]]
    finally:
        stable.stop()


def test_a_token_of_samples_is_not_shown_to_who_has_no_certificate_of_the_authority(
    tmp_path: Path, authority: Authority
) -> None:
    token = tmp_path / "token"
    token.write_text("of-the-samples")
    other = Server(tmp_path, tls_folder=Authority("else").issue(tmp_path / "theirs"), samples_token=token)
    try:
        exchange = Exchange(ServerSettings(samples_token=token, tls_folder=authority.issue(tmp_path / "mine")))
        for _ in range(2):
            with pytest.raises(Trouble, match="CERTIFICATE_VERIFY_FAILED"):
                exchange.take(("127.0.0.1", other.management))
    finally:
        other.stop()


def test_without_an_authority_in_the_secret_only_its_own_certificate_is_believed(
    tmp_path: Path, authority: Authority
) -> None:
    token = tmp_path / "token"
    token.write_text("of-the-samples")
    secret, other = authority.issue(tmp_path / "tls"), authority.issue(tmp_path / "other")
    for folder in (secret, other):
        (folder / "ca.crt").unlink()
    stable = Server(tmp_path, tls_folder=secret, samples_token=token)
    address = ("127.0.0.1", stable.management)
    try:
        head, _ = Exchange(ServerSettings(samples_token=token, tls_folder=secret)).take(address)
        assert head.revision == "abc123"
        with pytest.raises(Trouble, match=r"CERTIFICATE_VERIFY_FAILED.*expected a certificate that ca\.crt"):
            Exchange(ServerSettings(samples_token=token, tls_folder=other)).take(address)
    finally:
        stable.stop()
