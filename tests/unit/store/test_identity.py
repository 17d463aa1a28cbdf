"""Who asks a bucket: a Secret alone, or the environment; and what is said where the server does not let that identity in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.servers.web import Request, WebServer, serving
from tests.unit.store.locations import read, refusal, secret

from fettle.api.reasons import Reason
from fettle.errors import SourceError, StoreError
from fettle.store import places
from fettle.store.failures import Failure, error_of
from fettle.store.store import Store
from fettle.store.uris import Location, Mounts, locate

pytest.importorskip("obstore")

KEYS = {"AWS_ACCESS_KEY_ID": "SECRETS-KEY", "AWS_SECRET_ACCESS_KEY": "of-the-secret"}
SESSION = KEYS | {"AWS_SESSION_TOKEN": "of-a-session"}
URI = "s3://models/m/model.onnx"


@dataclass
class Bucket(WebServer):
    """Answers as S3 does: a refusal is a document, which HEAD has no room for."""

    refuses: tuple[int, str, str] | None = None  # status, code, and what else the document says
    headers: dict[str, str] = field(default_factory=dict)

    def answer(self, request: Request, body: bytes) -> tuple[int, bytes, dict[str, str]] | None:
        if self.refuses is None:
            return None
        status, code, more = self.refuses
        document = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>{more}<RequestId>1</RequestId></Error>'
        )
        return status, b"" if request.method == "HEAD" else document.encode(), self.headers


@pytest.fixture(autouse=True)
def no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have one."""
    for scheme in places.PREFIXES:
        for name in places._of_provider(scheme):
            monkeypatch.delenv(name)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serving(Bucket(files={"/models/m/model.onnx": b"graph"})) as server:
        assert isinstance(server, Bucket)
        yield server


def at(bucket: Bucket, folder: Path, **keys: str) -> Location:
    """The model in the bucket, with a Secret of these keys."""
    given = secret(folder / "keys", {"AWS_ENDPOINT_URL": bucket.url} | keys)
    return locate(URI, Mounts(secrets={URI: given}), missing=SourceError)


def shown(bucket: Bucket) -> set[str]:
    """As whom the bucket was asked."""
    return {(request.authorization or "").partition("Credential=")[2].partition("/")[0] for request in bucket.requests}


def test_a_secret_is_not_mixed_with_the_session_of_the_environment(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SESSION.items():
        monkeypatch.setenv(name, f"environments-{value}")
    assert read(at(bucket, tmp_path, **KEYS), "m/model.onnx") == b"graph"
    assert shown(bucket) == {"SECRETS-KEY"}
    assert all("security-token" not in (request.authorization or "") for request in bucket.requests), "it is signed"


def test_the_environment_stays_as_it_was(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-environment")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert read(at(bucket, tmp_path, **KEYS), "m/model.onnx") == b"graph", "the Secret's own endpoint counts"
    assert places.identity_in_environment("s3") == ["AWS_SESSION_TOKEN"]
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "nonsense")
    with pytest.raises(SourceError, match="cannot be used"):
        at(bucket, tmp_path, AWS_SKIP_SIGNATURE="nonsense")
    assert places.identity_in_environment("s3") == ["AWS_SESSION_TOKEN", "AWS_SKIP_SIGNATURE"]


def test_two_clients_that_are_made_at_once_each_have_their_secret_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-environment")
    with places._hidden("s3", KEYS):
        second = places._hidden("s3", KEYS)  # that waits for the first
    with second:
        assert "AWS_SESSION_TOKEN" not in os.environ
    assert os.environ["AWS_SESSION_TOKEN"] == "of-the-environment"


def test_an_endpoint_of_the_environment_counts_for_a_secret_that_has_none(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
    given = secret(tmp_path / "keys", KEYS)
    assert read(locate(URI, Mounts(secrets={URI: given})), "m/model.onnx") == b"graph"


def test_the_identity_of_the_environment_asks_where_the_secret_has_none(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SESSION.items():
        monkeypatch.setenv(name, f"environments-{value}")
    assert read(at(bucket, tmp_path), "m/model.onnx") == b"graph"
    assert shown(bucket) == {"environments-SECRETS-KEY"}


def test_a_signature_for_azure_is_not_replaced_by_a_key_of_the_environment(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    given = {"AZURE_STORAGE_ACCOUNT_NAME": "me", "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=mine"}
    keys = secret(tmp_path / "keys", given, AZURE_STORAGE_ENDPOINT=bucket.url)
    uri = "az://models/m/model.onnx"
    bucket.refuses = 403, "AuthenticationFailed", ""
    refusal(locate(uri, Mounts(secrets={uri: keys}), missing=SourceError), "m/model.onnx")
    assert {request.authorization for request in bucket.requests} == {None}
    assert all("sig=mine" in request.path for request in bucket.requests)


@pytest.mark.parametrize("variable", ["GOOGLE_SERVICE_ACCOUNT", "SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"])
def test_an_account_of_google_in_the_environment_does_not_keep_that_of_a_secret_from_being_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "nowhere.json"))
    account = '{"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": true}'
    given = secret(tmp_path / "keys", GOOGLE_SERVICE_ACCOUNT_KEY=account)
    assert locate("gs://models/m", Mounts(secrets={"gs://models/m": given})).path == "m"


ALL = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
NO_LONGER = f"the credentials in Secret keys are no longer valid, because they expired or were revoked: renew {ALL}"
WRONG_KEYS = f"the credentials in Secret keys were refused: correct {ALL}"


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredToken", NO_LONGER),
        (400, "InvalidToken", NO_LONGER),
        (400, "TokenRefreshRequired", NO_LONGER),
        (403, "ExpiredToken", NO_LONGER),
        (403, "InvalidTokenId", NO_LONGER),
        (403, "InvalidClientTokenId", NO_LONGER),
        (403, "InvalidAccessKeyId", WRONG_KEYS),
        (403, "SignatureDoesNotMatch", WRONG_KEYS),
        (403, "AccessDenied", "access was denied to the identity in Secret keys: grant it access to this path"),
        (403, "RequestTimeTooSkewed", "the clock of this machine and that of the server differ too much"),
    ],
)
def test_a_refusal_says_what_to_do(bucket: Bucket, tmp_path: Path, status: int, code: str, words: str) -> None:
    bucket.refuses = status, code, "<Message>as-the-server-says</Message><Token-0>of-a-session</Token-0>"
    error = refusal(at(bucket, tmp_path, **SESSION), "m/model.onnx")
    assert (error.reason, error.retryable) == (Reason.FORBIDDEN, False)
    assert f"{URI}: {words}" in error.message and error.message.endswith(f"({status} {code})")
    assert "of-a-session" not in error.message and "as-the-server-says" not in error.message


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken"])
def test_a_session_that_ends_before_the_result_is_written_says_so(bucket: Bucket, tmp_path: Path, code: str) -> None:
    given = secret(tmp_path / "keys", SESSION, AWS_ENDPOINT_URL=bucket.url)
    store = Store.open("s3://models/store", Mounts(secrets={"s3://models/store": given}))
    bucket.refuses = 400, code, ""
    for question in (
        lambda: store.exists("builds/a.json"),
        lambda: store.put_bytes(b"x"),
        lambda: store.names("builds"),
    ):
        with pytest.raises(StoreError) as caught:
            question()
        assert (caught.value.reason, caught.value.retryable) == (Reason.FORBIDDEN, False)
        assert NO_LONGER in caught.value.message


def test_a_session_of_the_environment_that_ended_is_named_by_its_variables(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SESSION | {"AWS_ENDPOINT_URL": bucket.url}).items():
        monkeypatch.setenv(name, value)
    bucket.refuses = 400, "ExpiredToken", ""
    error = refusal(locate(URI, Mounts(), missing=SourceError), "m/model.onnx")
    assert error.reason == Reason.FORBIDDEN
    assert (
        f"the credentials in the environment are no longer valid, because they expired or were revoked: renew {ALL}"
        in error.message
    )


@pytest.mark.parametrize(
    ("scheme", "variable"),
    [
        ("s3", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        ("gs", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs", "SERVICE_ACCOUNT"),
        ("az", "AZURE_CLIENT_SECRET"),
    ],
)
def test_whatever_says_who_asks_is_an_identity_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, scheme: str, variable: str
) -> None:
    place = places.Place(f"{scheme}://models", None, lists=True, credentials=None)
    refused = Failure.of("status code: 403, <Code>AccessDenied</Code>", not_found=False)
    assert "access was denied without credentials" in error_of(place, URI, refused, SourceError).message
    monkeypatch.setenv(variable, "mine")
    assert "denied to the identity in the environment" in error_of(place, URI, refused, SourceError).message


EXPECTED = (
    "<Message>The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'</Message>"
)
NAMED = "the bucket is in the region eu-west-1: set AWS_REGION to it in Secret keys"


@pytest.mark.parametrize(
    ("refuses", "headers", "words"),
    [
        ((400, "AuthorizationHeaderMalformed", f"{EXPECTED}<Region>eu-west-1</Region>"), {}, NAMED),
        ((400, "AuthorizationHeaderMalformed", EXPECTED), {}, NAMED),
        ((400, "IllegalLocationConstraintException", ""), {}, "the bucket is in another region: set AWS_REGION to it"),
        ((301, "PermanentRedirect", "<Bucket>models</Bucket>"), {"x-amz-bucket-region": "eu-west-1"}, "set AWS_REGION"),
    ],
)
def test_another_region_is_named(
    bucket: Bucket, tmp_path: Path, refuses: tuple[int, str, str], headers: dict[str, str], words: str
) -> None:
    bucket.refuses, bucket.headers = refuses, headers
    error = refusal(at(bucket, tmp_path, **KEYS), "m/model.onnx")
    assert words in error.message
    assert (error.reason, error.retryable) == (Reason.SOURCE_NOT_FOUND, False)
