"""Repositories of the Hugging Face Hub, or of a server with its API: `hf://ORG/NAME@REVISION/PATH`, and `hf://datasets/ORG/NAME@REVISION/PATH`.

The address has the form that `huggingface_hub` gives it. A repository is two web addresses: one that tells which commit a revision is and which
files it has, and one for the files of that commit.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import quote, unquote

from fettle.api.reasons import Reason
from fettle.api.uris import HUB_ADDRESS
from fettle.errors import FettleError
from fettle.store.credentials import Credentials
from fettle.store.failures import Failure
from fettle.store.listed import ListedFiles
from fettle.store.places import Missing, Place, given_by, require_keys, server_of, stays_inside, web_server
from fettle.store.web import json_object

PUBLIC = "https://huggingface.co"
TOKEN, ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"
MOST_LISTING = 32 << 20  # bytes: a hundred thousand files, and all else that is told of a repository
_ADDRESS = re.compile(HUB_ADDRESS)
_NAME = re.compile("(?!datasets/)[^/@]+/[^/@]+")


@dataclass(frozen=True)
class Repository:
    """A repository at a revision: a branch, a tag or a commit."""

    name: str  # ORG/NAME
    revision: str
    datasets: bool

    def __str__(self) -> str:
        return f"hf://{'datasets/' * self.datasets}{self.name}@{self.revision}"

    @property
    def described(self) -> str:
        """Path of what the hub tells about it."""
        return f"api/{'datasets' if self.datasets else 'models'}/{self.name}/revision/{quote(self.revision, safe='')}"

    def files(self, commit: str) -> str:
        """Path that the files of a commit lie below."""
        return f"{'datasets/' * self.datasets}{self.name}/resolve/{commit}"


def find(
    uri: str, credentials: Credentials | None, pinned: MutableMapping[str, str], missing: Missing
) -> tuple[HubFiles, str]:
    """The files that `uri` lies among, and the path there; nothing is asked of the hub yet. `pinned`: what revisions were before.

    Raises what `missing` makes.
    """
    matched = _ADDRESS.fullmatch(uri)
    if matched is None or not _NAME.fullmatch(matched["name"]):
        raise missing(f"{uri}: expected hf://ORG/NAME@REVISION/PATH or hf://datasets/ORG/NAME@REVISION/PATH")
    require_keys(uri, credentials, missing)
    repository = Repository(matched["name"], unquote(matched["revision"] or "main"), matched["datasets"] is not None)
    endpoint = server_of(ENDPOINT, PUBLIC, credentials, str(repository), missing)
    token = given_by(credentials).get(TOKEN)

    def at(path: str) -> Place:
        return web_server(f"{endpoint}/{path}", credentials, {"token": token} if token else {}, missing)

    return HubFiles(repository, at, pinned, missing), unquote(matched["path"] or "")


class HubFiles(ListedFiles):
    """The files of one commit: the one that the revision names when the first file is asked for."""

    def __init__(
        self,
        repository: Repository,
        at: Callable[[str], Place],
        pinned: MutableMapping[str, str],
        missing: Missing,
    ) -> None:
        known = replace(repository, revision=pinned.get(str(repository), repository.revision))
        super().__init__(at(known.described), str(repository), missing)
        self._repository, self._at, self._pinned = repository, at, pinned

    def names(self) -> frozenset[str]:
        """From the first call on, the place is that of the commit."""
        return self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        text = io.BytesIO()
        try:
            self._fetch_whole("", text, MOST_LISTING)
        except FileNotFoundError:
            raise self._missing(f"{self._repository}: there is no such repository or revision") from None
        try:
            told = json_object(text.getvalue())
            commit, names = told["sha"], frozenset(each["rfilename"] for each in told["siblings"])
            strange = sorted(str(name) for name in names if not stays_inside(name))
            if not stays_inside(commit):
                raise ValueError("no commit")
        except (ValueError, KeyError, TypeError):
            message = f"{self._place.root} does not answer as a Hugging Face Hub does: correct {ENDPOINT}"
            raise self._missing(message) from None
        if strange:
            message = f"{self._repository} lists {strange[0]!r}: expected relative paths that stay inside the repository; correct {ENDPOINT}"
            raise self._missing(message)
        self._pinned[str(self._repository)] = commit
        self._place = self._at(self._repository.files(quote(commit, safe="")))
        return names

    def _head(self, key: str) -> dict[str, Any]:
        # The hub and what it redirects to have tags of their own each. None is needed: a commit does not change.
        return super()._head(key) | {"e_tag": None}

    def _error(self, where: str, failure: Failure) -> FettleError:
        if not failure.denied:
            return super()._error(where, failure)
        given = self._place.credentials
        renew = (
            f"correct {TOKEN} in Secret {given.name}"
            if given is not None
            else f"name a Secret with {TOKEN} in secretName"
        )
        message = f"{self._repository}: there is no such repository, or it is private or gated, and access was denied ({failure.status}): {renew}"
        return self._missing(message, reason=Reason.FORBIDDEN)
