"""Models in the registry of an MLflow tracking server: `mlflow://MODEL/VERSION` or `mlflow://MODEL@ALIAS`, and `/PATH` of a file of theirs.

Two requests of the server's REST API tell where the files of a version are. They come through its artifact proxy, which knows no ranges: a
connection that breaks begins the file again. MLflow's own package would bring pandas, SQLAlchemy and Flask into the images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from fettle.api.uris import MODELS_ADDRESS
from fettle.errors import FettleError
from fettle.store.credentials import Credentials
from fettle.store.listed import WholeFiles
from fettle.store.places import Missing, given_by, require_keys, server_of, stays_inside
from fettle.store.remote import absent
from fettle.store.web import Asked, WebApi, json_object

SERVER, TOKEN = "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN"
LOGIN = {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"}
API, ARTIFACTS = "api/2.0/mlflow", "api/2.0/mlflow-artifacts/artifacts"
MOST_ENTRIES = 10_000
_ADDRESS = re.compile(MODELS_ADDRESS)


@dataclass(frozen=True)
class ModelVersion:
    """A registered model, and a version of it or an alias of one."""

    name: str
    version: str | None
    alias: str | None

    def __str__(self) -> str:
        return f"mlflow://{quote(self.name)}{f'/{self.version}' if self.version else f'@{self.alias}'}"


def find(
    uri: str, credentials: Credentials | None, pinned: MutableMapping[str, str], missing: Missing
) -> tuple[ModelFiles, str]:
    """The files that `uri` lies among, and the path there; nothing is asked of the server yet. `pinned`: what aliases meant before.

    Raises what `missing` makes.
    """
    matched = _ADDRESS.fullmatch(uri)
    if matched is None:
        raise missing(f"{uri}: expected mlflow://MODEL/VERSION, such as mlflow://digits/3, or mlflow://MODEL@ALIAS")
    require_keys(uri, credentials, missing)
    alias = unquote(matched["alias"]) if matched["alias"] else None
    model = ModelVersion(unquote(matched["model"]), matched["version"], alias)
    api = WebApi(server_of(SERVER, "", credentials, str(model), missing), credentials, missing)
    return ModelFiles(model, api, _proof(given_by(credentials)), pinned, missing), unquote(matched["path"] or "")


def _proof(given: Mapping[str, str]) -> Mapping[str, str]:
    if given.get(TOKEN):
        return {"token": given[TOKEN]}
    return {name: given[key] for name, key in LOGIN.items() if given.get(key)}


class ModelFiles(WholeFiles):
    """The files of one version: the one that the alias names when the first file is asked for."""

    def __init__(
        self,
        model: ModelVersion,
        api: WebApi,
        proof: Mapping[str, str],
        pinned: MutableMapping[str, str],
        missing: Missing,
    ) -> None:
        super().__init__(api.place, str(model), missing)
        self._model, self._api, self._proof, self._pinned = model, api, proof, pinned

    def names(self) -> Mapping[str, int]:
        """With the bytes of each."""
        return self._sizes

    @cached_property
    def _sizes(self) -> Mapping[str, int]:
        sizes: dict[str, int] = {}
        folders = [""]
        for folder in folders:  # which grows with what is found
            for name, entry in self._entries(folder):
                if entry.get("is_dir"):
                    folders.append(name)
                else:
                    sizes[name] = _size(entry.get("file_size"))
                if len(sizes) + len(folders) > MOST_ENTRIES:
                    raise self._missing(f"{self._title} has more than {MOST_ENTRIES} files and folders")
        if not sizes:
            raise self._missing(f"{self._title} has no files on the tracking server")
        return sizes

    @cached_property
    def _folder(self) -> str:
        """Where the files of the version lie below the artifact proxy."""
        told = self._call("model-versions/get-download-uri", name=self._model.name, version=self._version())
        uri, proxy = told.get("artifact_uri"), f"{self._place.root}/{ARTIFACTS}/"
        if not isinstance(uri, str) or not uri:
            raise self._no_server()
        parts = urlsplit(uri)
        if parts.scheme == "mlflow-artifacts" and parts.netloc in ("", urlsplit(proxy).netloc):
            path = parts.path.strip("/")
        elif uri.startswith(proxy):
            path = uri.removeprefix(proxy).strip("/")
        else:
            where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else parts.path
            message = (
                f"{self._title}: its files are at {where}, and not behind the artifact proxy of the tracking server: "
                "use that address instead, or start the server with --serve-artifacts and register the model again"
            )
            raise self._missing(message)
        if not stays_inside(path):
            raise self._no_server()
        return path

    def _version(self) -> str:
        if self._model.version is not None:
            return self._model.version
        if self._title not in self._pinned:
            told = self._call("registered-models/alias", name=self._model.name, alias=self._model.alias or "")
            version = told.get("model_version")
            number = version.get("version") if isinstance(version, Mapping) else None
            if not re.fullmatch("[0-9]+", str(number)):
                raise self._no_server()
            self._pinned[self._title] = str(number)
        return self._pinned[self._title]

    def _entries(self, folder: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """What lies in `folder`, each with its name relative to the model. Raises what `missing` makes."""
        query = urlencode({"path": f"{self._folder}/{folder}".rstrip("/")})
        entries = self._json(f"{ARTIFACTS}?{query}").get("files", [])
        for entry in entries if isinstance(entries, list) else ():
            path = entry.get("path") if isinstance(entry, Mapping) else None
            if not stays_inside(path):
                raise self._missing(f"{self._title} lists {entry!r:.100}: expected a relative path inside the model")
            yield (f"{folder}/{path}" if folder else str(path)), entry

    def _call(self, method: str, **query: str) -> Mapping[str, Any]:
        return self._json(f"{API}/{method}?{urlencode(query)}")

    def _json(self, path: str) -> Mapping[str, Any]:
        url = f"{self._place.root}/{path}"
        answer = self._api.ask(Asked(url, proof=self._proof))
        if answer.status in (400, 404):  # 400: MLflow's word for an alias that is not there
            raise self._missing(f"{self._title}: the tracking server has no such model, version, alias or file")
        if not answer.good:
            raise self._api.error(url, answer)
        try:
            return json_object(answer.body)
        except ValueError:
            raise self._no_server() from None

    def _no_server(self) -> FettleError:
        return self._missing(f"{self._place.root} does not answer as an MLflow tracking server does: correct {SERVER}")

    # ------------------------------------------------------------------------------------------------------------- reading

    def size_of(self, key: str) -> int:
        """See `WholeFiles.size_of`."""
        return self._sizes[key]

    def _fetch(self, key: str, meta: dict[str, Any], target: IO[bytes]) -> None:
        url = f"{self._place.root}/{ARTIFACTS}/{quote(f'{self._folder}/{key}')}"
        answer = self._api.fetch(Asked(url, proof=self._proof), target, meta["size"])
        if answer.status == 404:
            raise absent(f"{self._title}/{key}")
        if not answer.good:
            raise self._api.error(url, answer)


def _size(told: Any) -> int:
    """Bytes, which the server tells as a number or, for its JSON has no large ones, as text."""
    return int(told) if re.fullmatch("[0-9]{1,13}", str(told)) else 0
