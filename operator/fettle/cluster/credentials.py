"""Secrets with credentials for addresses outside of the cluster, as a pod gets them: files, never environment variables.

A pod can mount no Secret but those of its own namespace, so that no object reads another tenant's. One that is not there does not hold the
pod up: the program in it finds its folder empty, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from fettle.api.base import GROUP
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.task import AnyTask, PrepareTask, PublishTask
from fettle.api.uris import SECRETS_VARIABLE, Address, encode_secrets, is_remote
from fettle.cluster.claims import read_from
from fettle.cluster.kinds import Object
from fettle.settings import Settings

EGRESS_LABEL = f"{GROUP}/egress"  # on pods that talk to addresses outside: what the chart's NetworkPolicy lets out


def store_of(spec: OptimizedModelSpec, settings: Settings) -> Address:
    """The store of a run, and the Secret beside it."""
    if spec.store is not None:
        return Address(spec.store.uri, spec.store.secret_name)
    return Address(settings.store_uri, settings.store_secret_name)


def addresses_of(task: AnyTask, store: Address) -> tuple[Address, ...]:
    """All that a task reads and writes. `store` is that of its run."""
    written = [Address(task.store, store.secret_name)]
    if isinstance(task, PrepareTask | PublishTask) and task.publish is not None:
        written.append(Address(task.publish.uri, task.publish.secret_name))
    return (*read_from(task).values(), *written)


def labels(addresses: Sequence[Address]) -> dict[str, str]:
    """Labels of a pod with these addresses."""
    return {EGRESS_LABEL: "true"} if any(is_remote(address.uri) for address in addresses) else {}


def environment(addresses: Sequence[Address]) -> dict[str, str]:
    """What its container is told: paths, no values."""
    known = any(is_remote(address.uri) for address in addresses)
    return {SECRETS_VARIABLE: encode_secrets(addresses, _folders(addresses))} if known else {}


def volumes(addresses: Sequence[Address]) -> list[Object]:
    """The Secrets as volumes."""
    return [
        {"name": f"secret-{index}", "secret": {"secretName": name, "defaultMode": 0o440, "optional": True}}
        for index, name in enumerate(_folders(addresses))
    ]


def volume_mounts(addresses: Sequence[Address]) -> list[Object]:
    """Where they are mounted."""
    return [
        {"name": f"secret-{index}", "mountPath": folder, "readOnly": True}
        for index, folder in enumerate(_folders(addresses).values())
    ]


def _folders(addresses: Sequence[Address]) -> dict[str, str]:
    names = (address.secret_name for address in addresses if is_remote(address.uri))
    return {name: f"/mnt/secrets/{name}" for name in names if name is not None}
