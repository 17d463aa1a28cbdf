"""Files on a web server: they arrive whole, whatever the connection does; and what cannot be had is told in words that name no secret."""

from __future__ import annotations

import io
import itertools
import json
import logging
import ssl
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.servers.web import WebServer, serving
from tests.unit.server.certificates import Authority
from tests.unit.store.locations import secret

from fettle.api.reasons import Reason
from fettle.errors import FettleError, SourceError, StoreError
from fettle.store import remote
from fettle.store.credentials import CleanFormatter, Credentials, hidden_values
from fettle.store.uris import Location, Mounts, locate

pytest.importorskip("obstore")
pytestmark = pytest.mark.usefixtures("small_parts")
TOKEN, PASSWORD = "s3cr3t-t0ken-of-mine", "correct horse battery"
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving(WebServer({"/m/model.onnx": CONTENT, "/m/an ü 100%.bin": b"odd", "/empty": b""})) as server:
        yield server


def at(web: WebServer, path: str, folder: Path | None = None) -> Location:
    return locate(f"{web.url}/{path}", Mounts(secrets={web.url: folder}), missing=SourceError)


def fetched(location: Location, tmp_path: Path) -> bytes:
    location.filesystem.get_file(location.path, str(tmp_path / "fetched"))
    return (tmp_path / "fetched").read_bytes()


def refusal(location: Location, tmp_path: Path) -> FettleError:
    with pytest.raises(SourceError) as caught:
        fetched(location, tmp_path)
    return caught.value


def test_a_file_arrives_in_parallel_ranges(web: WebServer, tmp_path: Path) -> None:
    assert fetched(at(web, "m/model.onnx"), tmp_path) == CONTENT
    ranges = {request.range for request in web.requests if request.method == "GET"}
    assert ranges == {"bytes=0-65535", "bytes=65536-131071", "bytes=131072-196607", "bytes=196608-255999"}


def test_a_web_server_is_not_asked_what_lies_in_a_folder(web: WebServer) -> None:
    assert at(web, "m").filesystem.find("m") == []
    assert not web.requests


def test_no_more_parts_are_begun_than_are_fetched_at_once() -> None:
    done: list[int] = []
    ahead: list[int] = []

    def starts() -> Iterator[int]:
        for number in range(100):
            ahead.append(number - len(done))
            yield number

    remote.at_once(done.append, starts())
    assert sorted(done) == list(range(100))
    assert max(ahead) <= remote.AT_ONCE


def test_after_a_part_that_fails_no_other_is_begun() -> None:
    begun: list[int] = []

    def fail(start: int) -> None:
        begun.append(start)
        raise StoreError("the connection was lost")

    with pytest.raises(StoreError, match="the connection was lost"):
        remote.at_once(fail, itertools.count())
    assert len(begun) <= remote.AT_ONCE


@pytest.mark.parametrize(("path", "content"), [("m/an%20%C3%BC%20100%25.bin", b"odd"), ("empty", b"")])
def test_odd_files_arrive_too(web: WebServer, tmp_path: Path, path: str, content: bytes) -> None:
    assert fetched(at(web, path), tmp_path) == content


def test_a_server_without_ranges_gives_the_whole_file(web: WebServer, tmp_path: Path) -> None:
    web.ranges = False
    assert fetched(at(web, "m/model.onnx"), tmp_path) == CONTENT


def test_a_file_that_changes_while_it_is_read_is_no_mixture_of_both(web: WebServer, tmp_path: Path) -> None:
    files = at(web, "m/model.onnx").filesystem
    before = files._head("m/model.onnx")
    assert files.read_range("m/model.onnx", before, 0, 10) == CONTENT[:10]
    web.files["/m/model.onnx"] = CONTENT[::-1]
    with pytest.raises(SourceError, match="was changed while it was read") as caught:
        files.read_range("m/model.onnx", before, 10, 20)
    assert caught.value.retryable


def test_a_server_that_takes_no_head_is_asked_otherwise(web: WebServer, tmp_path: Path) -> None:
    web.heads = False
    assert fetched(at(web, "m/model.onnx"), tmp_path) == CONTENT
    assert not at(web, "m/other.onnx").filesystem.exists("m/other.onnx")


@pytest.mark.parametrize("fault", ["breaks", "failures"])
def test_a_connection_that_breaks_loses_nothing(web: WebServer, tmp_path: Path, fault: str) -> None:
    setattr(web, fault, 2)
    assert fetched(at(web, "m/model.onnx"), tmp_path) == CONTENT
    assert getattr(web, fault) == 0


def test_a_large_file_is_read_in_blocks(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WHOLE", 1000)
    monkeypatch.setattr(remote, "BLOCK", 1000)
    location = at(web, "m/model.onnx")
    with location.filesystem.open(location.path, "rb") as stream:
        stream.seek(100_000)
        assert stream.read(10) == CONTENT[100_000:100_010]
    read = [request.range for request in web.requests if request.range not in (None, "bytes=0-0")]
    assert len(read) == 1, "the rest was left where it is"


def test_a_file_is_opened_wherever_its_size_lies(web: WebServer) -> None:
    location = at(web, "m/model.onnx")
    with location.filesystem.open(location.path, "rb") as stream:
        assert stream.read() == CONTENT


def test_what_lies_beside_a_file_is_found(web: WebServer) -> None:
    beside = at(web, "m/model.onnx").parent.child("model.onnx")
    assert beside.uri == f"{web.url}/m/model.onnx"
    assert beside.filesystem.isfile(beside.path)
    assert not beside.filesystem.isdir("m")


def test_a_file_that_is_not_there_is_absent(web: WebServer, tmp_path: Path) -> None:
    location = at(web, "m/other.onnx")
    assert not location.filesystem.exists(location.path)
    with pytest.raises(FileNotFoundError, match=r"m/other\.onnx"):
        fetched(location, tmp_path)


@pytest.mark.parametrize(
    ("server", "given"),
    [
        (WebServer(token=TOKEN), {"token": TOKEN}),
        (WebServer(password=("me", PASSWORD)), {"username": "me", "password": PASSWORD}),
    ],
)
def test_the_secret_opens_the_door(server: WebServer, given: dict[str, str], tmp_path: Path) -> None:
    server.files["/model.onnx"] = CONTENT
    with serving(server) as web:
        assert fetched(at(web, "model.onnx", secret(tmp_path / "door", **given)), tmp_path) == CONTENT


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "access was denied without credentials: name a Secret with them in secretName (401)"),
        ({"token": "wrong-token"}, "the credentials in Secret door were refused: correct token (401)"),
        ({"username": "me", "password": "wrong-pass"}, "correct password and username (401)"),
        ({}, "the Secret door does not exist in this namespace, or is empty"),
    ],
)
def test_a_closed_door_says_what_to_do(
    web: WebServer, tmp_path: Path, given: dict[str, str] | None, words: str
) -> None:
    web.token = TOKEN
    with pytest.raises(SourceError) as caught:
        fetched(at(web, "m/model.onnx", None if given is None else secret(tmp_path / "door", **given)), tmp_path)
    assert words in caught.value.message
    assert caught.value.reason == Reason.FORBIDDEN
    assert caught.value.retryable == (given == {}), "only a Secret that is missing may come by itself"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/m", "s3://bucket/m", "data:,x"])
def test_a_redirect_out_of_the_web_is_not_followed(web: WebServer, tmp_path: Path, target: str) -> None:
    web.redirects["/m/model.onnx"] = target
    error = refusal(at(web, "m/model.onnx"), tmp_path)
    assert "redirects to an address that is not followed" in error.message
    assert not error.retryable


def test_another_host_is_never_shown_the_secret(web: WebServer, tmp_path: Path) -> None:
    with serving(WebServer({"/elsewhere": b"found"})) as other:
        web.redirects["/m/model.onnx"] = f"{other.url}/elsewhere"
        web.token = TOKEN
        assert fetched(at(web, "m/model.onnx", secret(tmp_path / "door", token=TOKEN)), tmp_path) == b"found"
        assert {request.authorization for request in other.requests} == {None}


def test_a_server_that_is_away_may_come_back(web: WebServer, tmp_path: Path) -> None:
    web.failures = 1000
    error = refusal(at(web, "m/model.onnx"), tmp_path)
    assert "the server cannot be reached: it answered 503" in error.message
    assert (error.reason, error.retryable) == (Reason.STORE_UNREACHABLE, True)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:1", "the connection was refused"),
        ("http://nowhere.invalid", "its name is not known"),
    ],
)
def test_a_server_that_is_not_there_says_why(address: str, words: str, tmp_path: Path) -> None:
    error = refusal(locate(f"{address}/m.onnx", Mounts(), missing=SourceError), tmp_path)
    assert words in error.message
    assert error.retryable


def test_a_server_without_tls_is_named(web: WebServer, tmp_path: Path) -> None:
    error = refusal(locate(f"https://127.0.0.1:{web.port}/m.onnx", Mounts(), missing=SourceError), tmp_path)
    assert "it does not speak TLS" in error.message


@pytest.mark.parametrize(
    "uri",
    [
        f"https://me:{TOKEN}@host/m.onnx",
        f"https://{TOKEN}@host/m.onnx",
        f"https://host/m.onnx?X-Amz-Signature={TOKEN}",
        f"s3://key:{TOKEN}@bucket/m.onnx",
        f"https://host/m.onnx#{TOKEN}",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SourceError) as caught:
        locate(uri, Mounts(), missing=SourceError)
    assert "put credentials into a Secret, and name it in secretName" in caught.value.message
    assert TOKEN not in caught.value.message
    assert caught.value.reason == Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("uri", "given", "words"),
    [
        ("s3://bucket/m", {"AWS_NONSENSE": "v"}, "a key that is unknown for s3://: AWS_NONSENSE"),
        ("s3://bucket/m", {"AWS_SKIP_SIGNATURE": TOKEN}, "a value that cannot be used: AWS_SKIP_SIGNATURE"),
        ("https://host/m", {"ca.crt": TOKEN}, "a value that cannot be used: ca.crt"),
        ("https:///m", {}, "the host is missing"),
    ],
)
def test_a_secret_that_makes_no_sense_is_named_by_its_keys(
    uri: str, given: dict[str, str], words: str, tmp_path: Path
) -> None:
    folder = secret(tmp_path / "odd", **given)
    with pytest.raises(SourceError) as caught:
        locate(uri, Mounts(secrets={uri: folder if given else None}), missing=SourceError)
    assert words in caught.value.message
    assert TOKEN not in caught.value.message


def test_each_address_has_its_own_secret_and_no_other(tmp_path: Path) -> None:
    broad, narrow = secret(tmp_path / "broad", a="1"), secret(tmp_path / "narrow", a="2")
    mounts = Mounts(secrets={"s3://b": broad, "s3://b/models/m.onnx": None, "s3://b/data": narrow})
    mounts = Mounts.from_environment(mounts.to_environment())

    def name(uri: str) -> str | None:
        found = mounts.credentials(uri)
        return found.name if found is not None else None

    assert name("s3://b/artifacts/1") == "broad"
    assert name("s3://b/data/x.npz") == "narrow"
    assert name("s3://b/models/m.onnx") is None
    assert name("s3://bb/x") is None


def test_no_secret_is_in_a_log_line_or_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: WebServer
) -> None:
    folder = secret(tmp_path / "door", username="me", password=PASSWORD)
    mounts = Mounts(secrets={web.url: folder})
    for key, value in mounts.to_environment().items():
        monkeypatch.setenv(key, value)
    sent = next(iter(Credentials.read(folder).hidden() or ()), "")
    assert sent == PASSWORD
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(CleanFormatter())
    log = logging.Logger("test")
    log.addHandler(handler)
    encoded = list(Credentials.read(folder).hidden())[-1]
    try:
        raise RuntimeError(f"Authorization: Basic {encoded}")
    except RuntimeError:
        log.exception("sent %s", PASSWORD)
    assert PASSWORD not in out.getvalue()
    assert encoded not in out.getvalue()
    assert "***" in out.getvalue()
    assert PASSWORD not in "".join(mounts.to_environment().values())
    assert PASSWORD not in repr(Credentials.read(folder))
    assert PASSWORD in hidden_values(mounts.to_environment())


def test_a_value_that_is_nested_without_end_is_hidden_as_it_is(tmp_path: Path) -> None:
    nested = '{"a":' * 100_000
    assert nested in set(Credentials(tmp_path, {"key": nested}).hidden())


def test_what_is_raised_shows_no_secret(web: WebServer, tmp_path: Path) -> None:
    web.statuses["/m/model.onnx"] = (403, f"<Error><Code>AccessDenied</Code>you sent {TOKEN}</Error>".encode())
    error = refusal(at(web, "m/model.onnx", secret(tmp_path / "door", token=TOKEN)), tmp_path)
    assert TOKEN not in error.message
    assert TOKEN not in "".join(traceback.format_exception(error))


def test_a_ca_of_ones_own_is_trusted_where_the_secret_has_it(tmp_path: Path) -> None:
    Authority().issue(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "tls.crt", tmp_path / "tls" / "tls.key")
    certificate = (tmp_path / "tls" / "ca.crt").read_text()
    with serving(WebServer({"/m.onnx": CONTENT}, tls=context)) as web:
        assert fetched(at(web, "m.onnx", secret(tmp_path / "door", **{"ca.crt": certificate})), tmp_path) == CONTENT
        error = refusal(at(web, "m.onnx"), tmp_path)
    assert "its certificate is not trusted; put the CA's certificate under the key ca.crt" in error.message


def test_without_its_client_an_address_outside_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(SourceError, match=r"https:// needs the package obstore, .* pip install '.\[runtime\]'"):
        locate("https://host/m.onnx", Mounts(), missing=SourceError)


def test_tls_is_not_given_up_for_a_redirect(tmp_path: Path) -> None:
    Authority().issue(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "tls.crt", tmp_path / "tls" / "tls.key")
    trusted = secret(tmp_path / "door", **{"ca.crt": (tmp_path / "tls" / "ca.crt").read_text()})
    with serving(WebServer({"/m.onnx": CONTENT})) as plain, serving(WebServer(tls=context)) as web:
        web.redirects["/m.onnx"] = f"{plain.url}/m.onnx"
        error = refusal(at(web, "m.onnx", trusted), tmp_path)
        assert plain.requests == []
    assert "redirects to an address that is not followed: only https:// is" in error.message
    assert not error.retryable


@pytest.mark.parametrize(
    ("uri", "given"),
    [
        ("az://container/m", {"AZURE_STORAGE_ACCOUNT_NAME": "me", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}),
        (
            "az://container/m",
            {
                "AZURE_CLIENT_ID": "i",
                "AZURE_CLIENT_SECRET": "s",
                "AZURE_TENANT_ID": "t",
                "AZURE_STORAGE_ACCOUNT_NAME": "me",
            },
        ),
        ("s3://bucket/m", {"AWS_SKIP_SIGNATURE": "true", "HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "localhost"}),
    ],
)
def test_the_keys_of_a_provider_are_understood(uri: str, given: dict[str, str], tmp_path: Path) -> None:
    assert locate(uri, Mounts(secrets={uri: secret(tmp_path / "keys", **given)})).path == "m"


def test_a_service_accounts_key_is_read_as_the_file_that_it_is(tmp_path: Path) -> None:
    private = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "client_email": "me@x",
        "private_key_id": "1",
        "private_key": private.decode(),
    }
    folder = secret(tmp_path / "keys", GOOGLE_APPLICATION_CREDENTIALS=json.dumps(account))
    assert locate("gs://bucket/m", Mounts(secrets={"gs://bucket/m": folder})).path == "m"
    assert private.decode() in set(Credentials.read(folder).hidden())
