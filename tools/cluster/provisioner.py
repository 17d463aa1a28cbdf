"""Volumes for claims: `python -m tools.cluster.provisioner CLUSTER`, a daemon of an embedded cluster.

For each pending claim of the default StorageClass it makes a folder and a `local` PersistentVolume bound to that claim; for
each released volume it removes both. `local`, not hostPath: hostPath ignores fsGroup, so non-root pods could not write.
Level-triggered: any event on claims or volumes leads to one look at everything.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path

import httpx

from tools.cluster.api import Api, Object, path_of
from tools.cluster.errors import ClusterError
from tools.cluster.paths import CLUSTERS, NODE, PROVISIONER, STORAGE_CLASS, checkout

CLAIMS = "/api/v1/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
MARK = "pv.kubernetes.io/provisioned-by"  # tells the volume controller that somebody else deletes the volume
SETTLED = "fettle.dev/settled"
RESYNC_SECONDS = 60.0


def is_wanted(claim: Object) -> bool:
    """Whether a claim waits for a volume of ours."""
    spec = claim["spec"]
    return (
        spec.get("storageClassName") == STORAGE_CLASS
        and not spec.get("volumeName")
        and spec.get("volumeMode", "Filesystem") == "Filesystem"
        and "deletionTimestamp" not in claim["metadata"]
    )


def is_released(volume: Object) -> bool:
    """Whether a volume of ours lost its claim."""
    ours = volume["metadata"].get("annotations", {}).get(MARK) == PROVISIONER
    phase = volume.get("status", {}).get("phase")
    deletes = volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
    return ours and deletes and phase in ("Released", "Failed") and "deletionTimestamp" not in volume["metadata"]


def volume_name(claim: Object) -> str:
    return f"pvc-{claim['metadata']['uid']}"


def claim_reference(claim: Object) -> Object:
    """Kind, version and name of a claim: the items of a list come without the first two."""
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": claim["metadata"]}


def bound_status(claim: Object) -> Object:
    """The status of a bound claim. Without its capacity the kubelet would try to resize the file system, for ever."""
    spec = claim["spec"]
    capacity = {"storage": spec["resources"]["requests"]["storage"]}
    return {"phase": "Bound", "accessModes": spec["accessModes"], "capacity": capacity}


def volume_for(claim: Object, folder: Path) -> Object:
    """The volume that a claim gets. One node: every access mode can be granted."""
    metadata, spec = claim["metadata"], claim["spec"]
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
    reference = {key: metadata[key] for key in ("name", "namespace", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name(claim), "annotations": {MARK: PROVISIONER}},
        "spec": {
            "storageClassName": STORAGE_CLASS,
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference},
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }


def reconcile(api: Api, folder: Path) -> None:
    """Bring volumes and folders in line with the claims, once."""
    volumes = {volume["metadata"]["name"]: volume for volume in api.items(VOLUMES)}
    for name, volume in volumes.items():
        if is_released(volume):
            shutil.rmtree(folder / name, ignore_errors=True)
            api.delete(f"{VOLUMES}/{name}")
            print(f"removed {name}", flush=True)
    for stray in set(folder.glob("pvc-*")) - {folder / name for name in volumes}:
        shutil.rmtree(stray, ignore_errors=True)
    made: list[str] = []
    for claim in api.items(CLAIMS):
        name = volume_name(claim)
        if not is_wanted(claim) or name in volumes:
            continue
        target = folder / name
        target.mkdir(exist_ok=True)
        target.chmod(0o777)  # a pod without fsGroup runs as anybody
        # The volume controller binds first and sets the phase last. A pod scheduled in between finds its claim "not bound",
        # and the kubelet looks again only after 15 seconds.
        api.patch(f"{path_of(claim_reference(claim))}/status", {"status": bound_status(claim)})
        api.create(VOLUMES, volume_for(claim, target))
        made.append(name)
        print(f"created {name} for {claim['metadata']['namespace']}/{claim['metadata']['name']}", flush=True)
    if made:
        # A scheduler that looked while its caches filled refuses the pod and hears of no further change: it would look again
        # after 5 minutes only. One more event, when every cache has settled, makes it look now.
        time.sleep(1)
        for name in made:
            api.patch(f"{VOLUMES}/{name}", {"metadata": {"annotations": {SETTLED: "true"}}})


def _watch(api: Api, path: str, changed: threading.Event) -> None:
    while True:
        try:
            for _ in api.watch(path, 240):
                changed.set()
        except (httpx.HTTPError, ClusterError, ValueError) as error:
            print(f"watch {path}: {error}", file=sys.stderr, flush=True)
            time.sleep(1)
        changed.set()


def main() -> None:
    """Run for ever."""
    paths = checkout(next(cluster for cluster in CLUSTERS if cluster.name == sys.argv[1]))
    paths.volumes.mkdir(parents=True, exist_ok=True)
    api, changed = Api(paths), threading.Event()
    for path in (CLAIMS, VOLUMES):
        threading.Thread(target=_watch, args=(Api(paths), path, changed), daemon=True).start()
    while True:
        changed.wait(RESYNC_SECONDS)
        changed.clear()
        try:
            reconcile(api, paths.volumes)
        except ClusterError as error:
            print(error, file=sys.stderr, flush=True)
            time.sleep(1)
            changed.set()


if __name__ == "__main__":
    main()
