"""An artifact in an OCI registry, as the distribution specification describes it: its manifest, and who may read and write its blobs."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Annotated, Any
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from fettle.api.reasons import Reason
from fettle.api.uris import DIGEST, REGISTRY_ADDRESS, REPOSITORY
from fettle.errors import FettleError
from fettle.store.credentials import DOCKER_CONFIG, Credentials
from fettle.store.places import Missing, given_by, holder, require_keys
from fettle.store.remote import absent
from fettle.store.web import Answer, Asked, WebApi, json_object, web_address

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MANIFESTS = (
    IMAGE_MANIFEST,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MOST_BYTES = 1 << 43  # of a blob, and of all blobs of an artifact: what is announced beyond it is no size of files
PLAIN_HTTP = "PLAIN_HTTP"
MOST_TAG = 128  # characters
_ADDRESS = re.compile(REGISTRY_ADDRESS)
_NAME = re.compile(REPOSITORY)
_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?")
_DOCKER_HUB = {"docker.io": "registry-1.docker.io"}
_DOCKER_HUBS_KEY = "index.docker.io"


@dataclass(frozen=True)
class RegistryReference:
    """Which artifact: REGISTRY/REPOSITORY, and a tag or a digest."""

    host: str
    name: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag, digest = f":{self.tag}" if self.tag else "", f"@{self.digest}" if self.digest else ""
        return f"oci://{self.host}/{self.name}{tag}{digest}"

    @property
    def selector(self) -> str:
        """What a manifest is asked for by: the digest where there is one."""
        return self.digest or self.tag or "latest"


def parse(uri: str, missing: Missing) -> tuple[RegistryReference, str]:
    """The artifact, and the path in it. Raises what `missing` makes."""
    matched = _ADDRESS.fullmatch(uri)
    if matched is None or not _is_reference(matched["host"], matched["name"], matched["tag"]):
        message = f"{uri}: expected oci://REGISTRY/REPOSITORY:TAG or oci://REGISTRY/REPOSITORY@sha256:DIGEST, and /PATH behind it for a file in it"
        raise missing(message)
    digest = matched["digest"] or matched["tag_digest"]
    tag = matched["tag"] or (None if digest else "latest")
    return RegistryReference(matched["host"], matched["name"], tag, digest), matched["path"] or ""


def _is_reference(host: str, name: str, tag: str | None) -> bool:
    """Whether a registry may know an artifact by these: the API's rule bounds neither the parts of a name nor the length of a tag."""
    return "@" not in host and _NAME.fullmatch(name) is not None and len(tag or "") <= MOST_TAG


class _Document(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)


class Layer(_Document):
    """What a manifest says of a blob."""

    media_type: str
    digest: Annotated[str, Field(pattern=f"^{DIGEST}$")]
    size: Annotated[int, Field(ge=0, le=MOST_BYTES)]
    annotations: dict[str, str] | None = None

    def annotation(self, *names: str) -> str | None:
        """The first of these that there is."""
        return next((value for name in names if (value := (self.annotations or {}).get(name))), None)


class ImageManifest(_Document):
    """A manifest: `layers` of an artifact or an image, `manifests` of an index of several."""

    layers: tuple[Layer, ...] = ()
    manifests: tuple[Layer, ...] = ()
    annotations: dict[str, str] | None = None


class Registry:
    """A repository, asked as whoever the Secret names, in the way that the registry wants to hear it."""

    def __init__(self, reference: RegistryReference, credentials: Credentials | None, missing: Missing) -> None:
        self.reference, self._credentials, self._missing = reference, credentials, missing
        given = given_by(credentials)
        told = given.get(PLAIN_HTTP, "").lower()
        plain = told == "true" or (not told and _LOOPBACK.fullmatch(reference.host) is not None)
        host = _DOCKER_HUB.get(reference.host, reference.host)
        self.root = f"{'http' if plain else 'https'}://{host}/v2/{reference.name}"
        self.api = WebApi(self.root, credentials, missing)
        self._login = self._found_login(given)
        self.proof: Mapping[str, str] = {}  # what the registry took last

    def manifest(self, pinned: MutableMapping[str, str]) -> ImageManifest:
        """The artifact's manifest, its digest checked. A tag means what it meant when it was asked for first, which `pinned` remembers.

        Raises what `missing` makes.
        """
        key = str(self.reference)
        found, digest = self._manifest(pinned.get(key, self.reference.selector))
        pinned[key] = digest
        if not found.manifests:
            return found
        if len(found.manifests) > 1:
            message = f"{self.reference} is an index of {len(found.manifests)} manifests: name one of them with @sha256:DIGEST"
            raise self._missing(message)
        return self._manifest(found.manifests[0].digest)[0]

    def ask(self, path: str, method: str = "GET", **others: Any) -> Answer:
        """The good answer at `path` of the repository, or at an address. Raises FileNotFoundError, and what `missing` makes."""
        asked = Asked(path if "://" in path else f"{self.root}/{path}", method, **others)
        answer = self.api.ask(replace(asked, proof=self.proof if self._is_home(asked.url) else {}))
        if answer.status == 401 and self._is_home(asked.url) and self._is_home(answer.url):
            self.proof = self._answer_to(answer)
            answer = self.api.ask(replace(asked, proof=self.proof))
        if answer.status == 404:
            raise absent(str(self.reference))
        if answer.status == 405 and asked.method in ("POST", "PUT"):
            message = f"{self.reference}: the registry can only be read, as a mirror can: name one that takes uploads"
            raise self._missing(message)
        if not answer.good:
            raise self.api.error(asked.url, answer)
        return answer

    def has(self, digest: str) -> bool:
        """Whether the registry has this blob. Raises what `missing` makes."""
        try:
            self.ask(f"blobs/{digest}", "HEAD")
        except FileNotFoundError:
            return False
        except FettleError as error:
            if error.reason != Reason.FORBIDDEN:
                raise
            return False  # so do some registries answer where there is no such repository yet
        return True

    def begin_upload(self) -> str:
        """The address to which the registry takes a blob now. Raises what `missing` makes."""
        try:
            begun = self.ask("blobs/uploads/", "POST").headers.get("Location")
        except FileNotFoundError:
            raise self._no_repository() from None
        place = web_address(begun, f"{self.root}/blobs/uploads/") if begun is not None else None
        if place is None:
            raise self._no_registry()
        if self.root.startswith("https:") and urlsplit(place).scheme != "https":
            message = (
                f"{self.root} takes uploads at {place.partition('?')[0]}, without TLS, so nothing is sent: the registry does not know "
                "that TLS ends in front of it; set the external address in its settings, or X-Forwarded-Proto in the proxy"
            )
            raise self._missing(message)
        return place

    def put(self, path: str, content: bytes | IO[bytes], size: int, media_type: str) -> None:
        """Have the registry keep `content` at `path`, or at an address that it gave out. Raises what `missing` makes."""
        headers = {"Content-Type": media_type, "Content-Length": str(size)}
        try:
            self.ask(path, "PUT", headers=headers, body=content)
        except FileNotFoundError:
            raise self._no_repository() from None

    def _no_registry(self) -> FettleError:
        """What is told of a server that answers as no registry does."""
        return self._missing(f"{self.root} does not answer as an OCI registry does: correct the address")

    def _no_repository(self) -> FettleError:
        return self._missing(f"{self.reference}: the registry has no such repository, and makes none: create it first")

    def _manifest(self, selector: str) -> tuple[ImageManifest, str]:
        try:
            answer = self.ask(f"manifests/{selector}", headers={"Accept": ", ".join(MANIFESTS)})
        except FileNotFoundError:
            raise self._missing(f"{self.reference}: the registry has no such repository, tag or digest") from None
        digest = f"sha256:{sha256(answer.body).hexdigest()}"
        said = answer.headers.get("Docker-Content-Digest", "")
        expected = selector if ":" in selector else said if said.startswith("sha256:") else digest
        if expected != digest:
            message = f"{self.reference}: expected a manifest with {expected}, found {digest}: the registry, or a proxy in front of it, changed it"
            raise self._missing(message, reason=Reason.DIGEST_MISMATCH)
        try:
            return ImageManifest.model_validate_json(answer.body), digest
        except ValidationError:
            raise self._no_registry() from None

    # --------------------------------------------------------------------------------------------------------- who asks

    def renew(self) -> None:
        """Have a new token, in place of one that is too old."""
        headers = {"Accept": ", ".join(MANIFESTS)}
        answer = self.api.ask(Asked(f"{self.root}/manifests/{self.reference.selector}", "HEAD", headers))
        self.proof = self._answer_to(answer) if answer.status == 401 and self._is_home(answer.url) else {}

    def _is_home(self, url: str) -> bool:
        """Whether it is the registry's own: no other host is shown who asks, or asked how to show it."""
        return _server(url) == _server(self.root)

    def _answer_to(self, refusal: Answer) -> Mapping[str, str]:
        """What the registry wants to be shown. Nothing of ours is sent before it asked."""
        for challenge in refusal.headers.get_all("WWW-Authenticate", ()):
            kind, _, told = challenge.partition(" ")
            if kind.lower() == "bearer":
                return self._token(dict(re.findall(r'(\w+)="([^"]*)"', told)))
            if kind.lower() == "basic":
                return self._login
        return {}

    def _token(self, told: Mapping[str, str]) -> Mapping[str, str]:
        """A token for this repository, of the service that the registry trusts."""
        realm = told.get("realm", "")
        kinds = ("https://", "http://") if self.root.startswith("http://") else "https://"
        if web_address(realm) is None or not realm.startswith(kinds):
            raise self._missing(f"{self.root} asks for a token of {realm!r}: expected an address with https://")
        query = urlencode({key: told[key] for key in ("service", "scope") if key in told})
        url = f"{realm}{'&' if '?' in realm else '?'}{query}"
        answer = self.api.ask(Asked(url, proof=self._login))
        if not answer.good:
            raise self.api.error(url, answer)
        try:
            document = json_object(answer.body)
            token = document.get("token") or document["access_token"]
            if not re.fullmatch(r"[\x21-\x7e]+", token):
                raise ValueError("no token")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._missing(f"{realm} does not answer as the token service of a registry does") from None
        return {"token": token}

    def _found_login(self, given: Mapping[str, str]) -> Mapping[str, str]:
        named = self._credentials is not None
        document = given.get(DOCKER_CONFIG) if named else _logged_in()
        if document is None:
            return {key: given[key] for key in ("username", "password") if named and key in given}
        host, name = self.reference.host, self.reference.name
        hosts = (host, _DOCKER_HUBS_KEY) if host in _DOCKER_HUB else (host,)
        try:
            logins = logins_of(document)
        except (ValueError, KeyError, TypeError, AttributeError):
            message = f"{self.reference}: {holder(self._credentials)} has a value that cannot be used: {DOCKER_CONFIG}"
            raise self._missing(message, reason=Reason.INVALID_SPEC) from None
        known = [key for key in logins if any(f"{place}/{name}/".startswith(f"{key}/") for place in hosts)]
        if named and not known:
            message = (
                f"{self.reference}: {DOCKER_CONFIG} in {holder(self._credentials)} has credentials for "
                f"{', '.join(sorted(logins)) or 'no registry'}, but not for {host}"
            )
            raise self._missing(message, reason=Reason.FORBIDDEN)
        return logins[max(known, key=len)] if known else {}


def _server(url: str) -> tuple[str, str]:
    """Scheme, and host and port, which may be written out where it is the usual one."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower().removesuffix({"https": ":443", "http": ":80"}.get(parts.scheme, ""))


def registry_at(uri: str, credentials: Credentials | None, missing: Missing) -> tuple[Registry, str]:
    """The registry of `uri`, and the path in the artifact; nothing is asked of it yet. Raises what `missing` makes."""
    reference, path = parse(uri, missing)
    require_keys(uri, credentials, missing)
    return Registry(reference, credentials, missing), path


def logins_of(document: str) -> dict[str, dict[str, str]]:
    """By registry, or by a path in one, what a document of `docker login` holds: `username` and `password`."""
    found = {}
    for name, entry in json_object(document).get("auths", {}).items():
        if entry.get("auth"):
            username, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        elif "password" in entry:
            username, password = entry["username"], entry["password"]
        else:
            continue  # kept by a helper of that machine
        found[re.sub("^https?://|/(v[12])?/*$", "", name)] = {"username": username, "password": password}
    return found


def _logged_in() -> str | None:
    """What `docker login` or `oras login` left on this machine."""
    path = Path(os.environ.get("DOCKER_CONFIG", "~/.docker")).expanduser() / "config.json"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
