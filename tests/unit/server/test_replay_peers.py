"""What a canary makes of a stable pod that answers slowly, without end, or what is no sample. Real sockets."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import pytest
from tests.unit.server.certificates import Authority

from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import AgreementMode
from fettle.server import replay
from fettle.server.replay import Exchange, Trouble, read_token
from fettle.server.samples import Sample, SamplesHead, pack, require, unpack
from fettle.server.settings import ServerSettings
from fettle.server.tls import Certificate
from fettle.store.comparison import Comparison

SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),),
    outputs=(Tensor(name="y", dtype="FP32", shape=(-1, 2), batch_axis=0),),
)
HEAD = SamplesHead(revision="a", signature=SIGNATURE, comparisons={"y": Comparison(mode=AgreementMode.TOP_ONE)})
ITEM, ANSWER = {"x": np.zeros(4, np.float32)}, {"y": np.zeros(2, np.float32)}
Talk = Callable[[socket.socket], None]
HANDSHAKE = b"\x16\x03"  # how TLS begins


@contextmanager
def peer(talk: Talk, tls: Path | None = None) -> Iterator[tuple[str, int]]:
    """A pod that listens to a request and then does as `talk` says. `tls`: the folder of its certificate."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            with contextlib.suppress(OSError), accepted(listening, tls) as connection:
                connection.recv(1 << 16)
                talk(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield listening.getsockname()[:2]
    thread.join()


def accepted(listening: socket.socket, tls: Path | None) -> socket.socket:
    connection, _ = listening.accept()
    return connection if tls is None else Certificate(tls).context().wrap_socket(connection, server_side=True)


def drip(beginning: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        connection.sendall(beginning)
        for _ in range(400):
            connection.sendall(b"x")
            time.sleep(0.05)

    return talk


def say(body: bytes, status: str = "200 OK") -> Talk:
    return lambda connection: connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode() + body)


@pytest.fixture
def exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    monkeypatch.setattr(replay, "TIMEOUT_SECONDS", 60)
    monkeypatch.setattr(replay, "MOST_BYTES", 100_000)
    token = tmp_path / "token"
    token.write_text("secret")
    return Exchange(ServerSettings(revision="b", samples_token=token, stable="127.0.0.1:1"))


@pytest.mark.parametrize(
    "talk",
    [
        drip(b""),
        drip(b"HTTP/1.1 200 OK\r\nX: "),
        drip(b"HTTP/1.1 200 OK\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"),
        say(b"x" * 10_000_000),
        say(b"", "HTTP/9 nonsense"),
        say(b"<html>", "200 OK"),
        say(b"no", "503 Service Unavailable"),
        say(pack(HEAD, [Sample(ITEM, ANSWER, 0)])[:-1]),
        say(pack(HEAD, [Sample({"x": np.zeros(5, np.float32)}, ANSWER, 0)])),
        say(pack(HEAD, [Sample({"x": np.zeros(4, np.float64)}, ANSWER, 0)])),
        say(pack(HEAD, [Sample({"z": np.zeros(4, np.float32)}, ANSWER, 0)])),
        say(pack(HEAD, [Sample(ITEM, {}, 0)])),
        say(pack(HEAD, [Sample(ITEM, ANSWER, 0)] * 33)),
    ],
)  # fmt: skip
def test_a_peer_that_hands_out_no_samples_is_a_trouble_and_soon_over(
    exchange: Exchange, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "TIMEOUT_SECONDS", 0.5)
    with peer(talk) as address, pytest.raises(Trouble):
        exchange.clear.add(address)
        exchange.take(address)


def test_a_peer_that_hands_out_samples_is_understood(exchange: Exchange) -> None:
    with peer(say(pack(HEAD, [Sample(ITEM, ANSWER, 0)]))) as address:
        exchange.clear.add(address)
        head, samples = exchange.take(address)
    assert (head.revision, len(samples)) == ("a", 1)
    require(head, samples[0])


@pytest.mark.parametrize(
    ("sentence", "mine", "theirs", "believed"),
    [
        ("the name of the Service", "digits.team.svc", "digits.team.svc", True),
        ("a wildcard for it", "*.team.svc", "digits.team.svc", True),
        ("the same the other way round", "digits.team.svc", "*.team.svc", True),
        ("another model of the namespace", "digits.team.svc", "other.team.svc", False),
        ("a model of another namespace", "*.team.svc", "digits.other.svc", False),
        ("a certificate for a gateway's name only", "digits.example.com", "other.team.svc", True),
    ],
)  # fmt: skip
def test_a_certificate_with_the_services_name_is_not_compared_with_one_that_the_authority_signed_for_somebody_else(
    tmp_path: Path, exchange: Exchange, sentence: str, mine: str, theirs: str, believed: bool
) -> None:
    authority = Authority()
    told = {"model": "digits", "stable": "digits-samples-1a2b3c.team.svc:8081"}
    own = authority.issue(tmp_path / "mine", hosts=[mine])
    guarded = Exchange(exchange.settings.model_copy(update={**told, "tls_folder": own}))
    with peer(
        say(pack(HEAD, [Sample(ITEM, ANSWER, 0)])), authority.issue(tmp_path / "theirs", hosts=[theirs])
    ) as address:
        if believed:
            assert guarded.take(address)[0].revision == "a"
        else:
            with pytest.raises(Trouble, match=r"Hostname mismatch.*for the Service's name if that Secret's is"):
                guarded.take(address)


@contextmanager
def overheard(reply: bytes | None) -> Iterator[tuple[tuple[str, int], list[bytes]]]:
    """A peer in a pod's place, which answers each connection with `reply` or resets it, and what it was sent first on each."""
    heard: list[bytes] = []

    def run(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # once it no longer listens
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    heard.append(connection.recv(1 << 16))
                    if reply is None:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    else:
                        connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=run, args=(listening,))
        thread.start()
        yield listening.getsockname()[:2], heard
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


REPLIES = {"hangs up": b"", "resets": None, "speaks in the clear": b"HTTP/1.1 400 Bad Request\r\n\r\n"}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_nothing_makes_a_pod_with_tls_ask_in_the_clear(tmp_path: Path, exchange: Exchange, reply: bytes | None) -> None:
    own = Authority().issue(tmp_path / "tls")
    guarded = Exchange(exchange.settings.model_copy(update={"tls_folder": own}))
    with overheard(reply) as (address, heard):
        for _ in range(3):
            with pytest.raises(Trouble, match="this revision asks for samples over TLS only: if stable has no server"):
                guarded.take(address)
    assert len(heard) == 3
    assert all(data.startswith(HANDSHAKE) and b"secret" not in data for data in heard)


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_pod_without_tls_asks_in_the_clear_only_who_has_none_either(exchange: Exchange, reply: bytes | None) -> None:
    with overheard(reply) as (address, heard), pytest.raises(Trouble):
        exchange.take(address)
    assert heard[0].startswith(HANDSHAKE)
    assert [b"secret" in data for data in heard] == [False, True]


@pytest.mark.parametrize("stable", ["host", "host:x", ":", "a" * 70 + ":1", "\0:1"])
def test_an_address_that_is_none_is_a_trouble(tmp_path: Path, stable: str) -> None:
    with pytest.raises(Trouble):
        Exchange(ServerSettings(stable=stable)).addresses()


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb", b"\xff\xfe", b"a\x00b", None])
def test_a_token_that_is_none_is_a_trouble(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(Trouble, match="no token in"):
        read_token(tmp_path / "token")


@pytest.mark.parametrize("shape", [[0, 2**70], [2**63], [0, 2**40]])
def test_a_size_that_no_array_has_is_refused(shape: list[int]) -> None:
    tensor = orjson.dumps({"name": "x", "dtype": "FP32", "shape": [0]}).replace(b"[0]", str(shape).encode())
    line = pack(HEAD, []).removesuffix(b"\n")
    with pytest.raises(ValueError, match="tensor x"):
        unpack(line.replace(b'"samples":[]', b'"samples":[{"inputs":[%b],"outputs":[]}]' % tensor) + b"\n")
