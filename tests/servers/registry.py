"""An OCI registry on a loopback address, with a token service like that of the large ones: artifacts to pull, and room for those that are pushed."""

from __future__ import annotations

import io
import json
import tarfile
from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from tests.servers.web import Request, WebServer

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TITLE, FILEPATH = "org.opencontainers.image.title", "org.cncf.model.filepath"
RAW, FILE = "application/vnd.cncf.model.weight.v1.raw", "application/vnd.oci.image.layer.v1.tar"
Layer = tuple[str, dict[str, str], bytes]  # media type, annotations, content


def digest_of(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"


@dataclass
class RegistryServer(WebServer):
    """`secret`: who has it gets tokens, if `login` is what it shows; a token is for pulling alone, or for pushing too."""

    login: tuple[str, str] | None = None
    secret: str | None = None
    realm: str = ""
    token_requests: list[str] = field(default_factory=list)
    uploads: int = 0
    lost_uploads: int = 0  # how many more blobs are refused when they have arrived
    cancelled: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def publish(self, name: str, tag: str, layers: list[Layer], **manifest: Any) -> str:
        """An artifact; its digest."""
        for _, _, content in layers:
            self.files[f"/v2/{name}/blobs/{digest_of(content)}"] = content
        described = [
            {"mediaType": kind, "digest": digest_of(content), "size": len(content), "annotations": annotations}
            for kind, annotations, content in layers
        ]
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {}, "layers": described, **manifest}
        return self.keep(name, tag, json.dumps(document).encode())

    def keep(self, name: str, tag: str, manifest: bytes) -> str:
        """A manifest, under its tag and its digest."""
        digest = digest_of(manifest)
        self.files |= {f"/v2/{name}/manifests/{key}": manifest for key in (tag, digest)}
        return digest

    # ---------------------------------------------------------------------------------------------------- what WebServer asks

    def answer(self, request: Request, body: bytes) -> tuple[int, bytes, dict[str, str]] | None:
        path, _, query = request.path.partition("?")
        if path == "/token":
            return self._token(request.authorization, query)
        if request.method not in ("POST", "PUT", "DELETE"):
            return None
        if not self._may(request):
            return 401, b"", self.refusal(request)
        name, _, rest = path.removeprefix("/v2/").partition("/blobs/uploads/")
        if request.method == "POST":
            self.uploads += 1
            return 202, b"", {"Location": f"{path}{self.uploads}?state=a"}
        if request.method == "DELETE":
            self.cancelled += 1
            return 204, b"", {}
        if rest:
            if self.lost_uploads:
                self.lost_uploads -= 1
                return 503, b"", {}
            digest = query.partition("digest=")[2]
            self.files[f"/v2/{name}/blobs/{digest}"] = body
            return (201 if digest == digest_of(body) else 400), b"", {}
        name, _, tag = path.removeprefix("/v2/").partition("/manifests/")
        return 201, b"", {"Docker-Content-Digest": self.keep(name, tag, body)}

    def admits(self, authorization: str | None) -> bool:
        return authorization in self._tokens("pull", "pull,push") if self.secret else self._knows(authorization)

    def refusal(self, request: Request) -> dict[str, str]:
        if not self.secret:
            return {"WWW-Authenticate": 'Basic realm="registry"'}
        name = request.path.removeprefix("/v2/").partition("/blobs")[0].partition("/manifests")[0]
        scope = f"repository:{name}:{self._needed(request)}"
        realm = self.realm or f"{self.url}/token"
        return {"WWW-Authenticate": f'Bearer realm="{realm}",service="registry",scope="{scope}"'}

    def _may(self, request: Request) -> bool:
        if not self.secret:
            return self._knows(request.authorization)
        return request.authorization in self._tokens(self._needed(request))

    def _needed(self, request: Request) -> str:
        return {"POST": "pull,push", "PUT": "pull,push", "DELETE": "delete"}.get(request.method, "pull")

    def _tokens(self, *rights: str) -> set[str]:
        return {f"Bearer {self.secret}-{right.replace(',', '-')}" for right in rights}

    def _knows(self, authorization: str | None) -> bool:
        if self.login is None:
            return True
        return authorization == f"Basic {b64encode(':'.join(self.login).encode()).decode()}"

    def _token(self, authorization: str | None, query: str) -> tuple[int, bytes, dict[str, str]]:
        self.token_requests.append(query)
        if not self._knows(authorization):
            return 401, b"", {}
        rights = query.rpartition(":")[2].replace(",", "-")
        return 200, json.dumps({"token": f"{self.secret}-{rights}", "expires_in": 60}).encode(), {}


def archive(files: dict[str, bytes], *others: tarfile.TarInfo, mode: str = "w") -> bytes:
    """A tar archive; `others`: entries without content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in others:
            tar.addfile(entry)
    return stream.getvalue()
