"""Addresses of files: `pvc://CLAIM/PATH` in a claim of the object's namespace, or in an object store or on a web server outside of it; and
how a pod is told where its claims and its Secrets lie."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fettle.api.base import Rule

MOUNTS_VARIABLE = "FETTLE_MOUNTS"
SECRETS_VARIABLE = "FETTLE_SECRETS"
OBJECT_STORES = ("s3", "gs", "az")
WEB = ("http", "https")
HUB = "hf"
REGISTRY = "oci"
MODELS = "mlflow"  # the registry of a tracking server
REMOTE_SCHEMES = (*OBJECT_STORES, *WEB, HUB, REGISTRY, MODELS)

_CLAIM = "pvc://[a-z0-9][a-z0-9.-]*"
_BUCKET = f"({'|'.join(OBJECT_STORES)})://[^/]+"
DIGEST = "sha256:[0-9a-f]{64}"
_PACK = f"{REGISTRY}://(?P<host>[^/]+)/(?P<name>[a-z0-9._/-]+)"
_PART = "[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*"
REPOSITORY = f"{_PART}(/{_PART})*"  # the name of one in a registry
_TAG = "[:](?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]*)"
_PATH = "(/(?P<path>.*))?"
# Addresses whose files a server lists. Their groups have names for the client that reads them; the rules of the API go without (`_unnamed`).
HUB_ADDRESS = f"{HUB}://((?P<datasets>datasets/))?(?P<name>[^/]+/[^/@]+)(@(?P<revision>[^/]+))?{_PATH}"
REGISTRY_ADDRESS = f"{_PACK}(({_TAG}(@(?P<tag_digest>{DIGEST}))?|@(?P<digest>{DIGEST})){_PATH})?"
MODELS_ADDRESS = f"{MODELS}://(?P<model>[^/@]+)(/(?P<version>[0-9]+)|@(?P<alias>[^/@]+)){_PATH}"
_REMOTE = f"({'|'.join(REMOTE_SCHEMES)})://"
# A user in front of the host. What stands there in mlflow:// is a model.
_USER = f"({'|'.join(scheme for scheme in REMOTE_SCHEMES if scheme != MODELS)})://[^/]*@"

SecretName = Annotated[
    str | None,
    Field(
        max_length=253,
        pattern="^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
        description="Secret in this namespace with the credentials for uri. Its keys are named like the environment variables of the "
        "provider's SDK, such as AWS_ACCESS_KEY_ID or HF_TOKEN; for http and https: token, or username and password; for oci: username and "
        "password, or .dockerconfigjson. Without it, the pod's own identity is used.",
    ),
]


@dataclass(frozen=True)
class Address:
    """An address that a spec names, and the Secret beside it."""

    uri: str
    secret_name: str | None = None


def file_rules(field: str, what: str = "a file or folder", *, optional: bool = False) -> tuple[Rule, ...]:
    """Rules of an object with `uri` and `secretName`; `uri`, which `field` names, is something to read."""
    message = (
        f"{field} must be pvc://CLAIM/PATH, {what} in a claim of this namespace, or s3://BUCKET/PATH, gs://BUCKET/PATH, "
        "az://CONTAINER/PATH, https://HOST/PATH, hf://ORG/NAME@REVISION/PATH, oci://REGISTRY/REPOSITORY:TAG or mlflow://MODEL/VERSION; "
        "file:// works in `fettle optimize` only"
    )
    served = f"https?://[^/]+/.+|{HUB_ADDRESS}|{REGISTRY_ADDRESS}|{MODELS_ADDRESS}"
    return _rules(field, f"{_CLAIM}(/.*)?|{_BUCKET}(/.*)?|{served}", message, optional)


def store_rules(field: str) -> tuple[Rule, ...]:
    """The same for a store."""
    message = (
        f"{field} must be pvc://CLAIM or pvc://CLAIM/PATH, a claim of this namespace, "
        "or s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH"
    )
    return _rules(field, f"{_CLAIM}(/.*)?|{_BUCKET}(/.*)?", message, False)


def artifact_rules(field: str) -> tuple[Rule, ...]:
    """The same for an artifact in a store, or in a registry."""
    message = (
        f"{field} must be pvc://CLAIM/PATH, an artifact in a claim of this namespace, or s3://BUCKET/PATH, gs://BUCKET/PATH, "
        "az://CONTAINER/PATH or oci://REGISTRY/REPOSITORY@sha256:DIGEST"
    )
    return _rules(field, f"{_CLAIM}/.+|{_BUCKET}/.+|{_PACK}@{DIGEST}", message, True)


def repository_rules(field: str) -> tuple[Rule, ...]:
    """The same for a repository in a registry, to which artifacts are pushed: the tags follow from them."""
    message = f"{field} must be oci://REGISTRY/REPOSITORY, without a tag: each artifact gets its own"
    return _rules(field, f"{REGISTRY}://[^/]+/{REPOSITORY}", message, False)


def _rules(field: str, pattern: str, message: str, optional: bool) -> tuple[Rule, ...]:
    absent = "!has(self.uri) || " if optional else ""
    secret = field.removesuffix("uri") + "secretName"
    return (
        Rule(f"{absent}self.uri.matches('^({_unnamed(pattern)})$')", message),
        Rule(
            f"{absent}!self.uri.matches('^({_USER}|{_REMOTE}[^?#]*[?#])')",
            f"{field} must not contain a user, a password or a query, because anyone who can read the object can read them: "
            f"put credentials into a Secret, and its name into {secret}",
        ),
        Rule(
            f"!has(self.secretName) || (has(self.uri) && self.uri.matches('^{_REMOTE}'))",
            f"{secret} belongs to an address outside of the cluster: {', '.join(f'{scheme}://' for scheme in REMOTE_SCHEMES)}",
        ),
    )


def _unnamed(pattern: str) -> str:
    """`pattern` without the names of its groups: no two of an expression may have the same."""
    return re.sub(r"\(\?P<\w+>([^()]*)\)", r"\1", pattern)


def claim_of(uri: str) -> str | None:
    """CLAIM of `pvc://CLAIM/PATH`, also without a path; None for another scheme."""
    scheme, _, rest = uri.partition("://")
    return rest.split("/", 1)[0] if scheme == "pvc" else None


def is_remote(uri: str) -> bool:
    """Whether `uri` is reached over the network, by a client of its own."""
    return uri.partition("://")[0] in REMOTE_SCHEMES


def store_of(artifact: str) -> str:
    """Address of the store that an artifact lies in (`STORE/artifacts/SHA256`): what a Secret opens, for its files lie beside it."""
    store, found, _ = artifact.rstrip("/").rpartition("/artifacts/")
    return store if found else artifact


def encode_mounts(folders: Mapping[str, str]) -> str:
    """`FETTLE_MOUNTS` for these folders, by claim."""
    return json.dumps(dict(folders), sort_keys=True)


def encode_secrets(addresses: Iterable[Address], folders: Mapping[str, str]) -> str:
    """`FETTLE_SECRETS` for what is read and written: address -> folder of its Secret, null where it has none. `folders`: by Secret."""
    remote = [address for address in addresses if is_remote(address.uri)]
    return json.dumps({each.uri: folders.get(each.secret_name or "") for each in remote}, sort_keys=True)
