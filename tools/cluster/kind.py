"""The cluster that a person looks at, run by kind in Docker: made where it is missing, with images loaded into its nodes.

It has no registry. Its kubeconfig is where the embedded cluster's would be, so that everything else finds it there.
"""

from __future__ import annotations

from pathlib import Path

from tools.cluster import shell
from tools.cluster.errors import ClusterError
from tools.cluster.paths import FETTLE, Paths
from tools.cluster.shell import Progress, attempt, run, run_logged, wait_until, write

NAME = FETTLE.name
CONTEXT_PREFIX = "kind-"
REGISTRY = "localhost"  # of images that are pulled from nowhere
READY_SECONDS = 180.0


def _marker(paths: Paths) -> Path:
    return paths.folder / "kind"


def is_ours(paths: Paths) -> bool:
    """Whether this checkout made a cluster. It may be gone by now, and another one may have its name."""
    return _marker(paths).exists()


def _is_there(paths: Paths) -> bool:
    """Whether the cluster that this checkout made is still there: a name alone says nothing, its first node's container does."""
    return is_ours(paths) and NAME in clusters() and _marker(paths).read_text().strip() == _identity()


def _identity() -> str:
    """Id of the container of the first node. Raises ClusterError."""
    return run("docker", "inspect", "--format", "{{.Id}}", nodes(NAME)[0]).strip()


def tool_path(paths: Paths) -> str:
    """Where kubectl and helm are looked for: an embedded cluster that ran here before may have left its own."""
    return f"{paths.bin}:{shell.tool_path()}"


def up(paths: Paths, progress: Progress) -> bool:
    """Have the cluster, with its kubeconfig written; whether it had to be made. Raises ClusterError."""
    exists = NAME in clusters()
    if exists and not _is_there(paths):
        raise ClusterError(
            f"there is a kind cluster {NAME} already, which this checkout did not make: delete it with "
            f"`kind delete cluster --name {NAME}`, or use it: `kind get kubeconfig --name {NAME} >FILE` and FETTLE_KUBECONFIG=FILE"
        )
    if exists:
        _resume(paths)
    else:
        _create(paths, progress)
    if not wait_until(lambda: nodes_ready(paths), READY_SECONDS, pause=1.0):
        raise ClusterError(
            f"the nodes of the kind cluster {NAME} are not ready: run `make cluster-down`, then try again"
        )
    return not exists


def _resume(paths: Paths) -> None:
    try:
        run("docker", "start", *nodes(NAME))  # someone may have stopped them; those that run are left alone
        run("kind", "export", "kubeconfig", "--name", NAME, "--kubeconfig", paths.kubeconfig)
    except ClusterError as error:  # an interrupted `up` may have left half of it
        raise ClusterError(f"{error}; `make cluster-down` deletes what is left of the kind cluster {NAME}") from error


def _create(paths: Paths, progress: Progress) -> None:
    progress(f"creating the kind cluster {NAME}; the first time, Docker downloads the node's image")
    log = paths.logs / "kind.log"
    _marker(paths).unlink(missing_ok=True)
    run_logged(log, "kind", "create", "cluster", "--name", NAME, "--kubeconfig", paths.kubeconfig, cwd=paths.root)
    write(_marker(paths), f"{_identity()}\n")


def down(paths: Paths, progress: Progress) -> None:
    """Delete the cluster that this checkout made, with everything in it. Raises ClusterError."""
    there = _is_there(paths)
    if there:
        run("kind", "delete", "cluster", "--name", NAME, "--kubeconfig", paths.kubeconfig)
    paths.kubeconfig.unlink(missing_ok=True)
    _marker(paths).unlink(missing_ok=True)
    if there:
        progress("the kind cluster is deleted, with all its objects and volumes; Docker keeps the images")
    else:
        progress("the kind cluster that was made here is not in this Docker engine any more: nothing was deleted")


def clusters() -> list[str]:
    """Names of kind's clusters on this machine. Raises ClusterError."""
    return run("kind", "get", "clusters").split()


def nodes(name: str) -> list[str]:
    """Containers of a cluster's nodes. Raises ClusterError where there are none."""
    found = run("kind", "get", "nodes", "--name", name).split()
    if not found:
        raise ClusterError(f"kind knows no cluster {name}, or one without nodes")
    return found


def nodes_ready(paths: Paths) -> bool:
    """Whether every node says so."""
    kubectl = ("kubectl", "--kubeconfig", paths.kubeconfig)
    wait = ("wait", "nodes", "--all", "--for=condition=Ready", "--timeout=10s")
    return attempt(*kubectl, *wait, env={"PATH": tool_path(paths)}).returncode == 0


def holds(name: str, reference: str) -> bool:
    """Whether every node of a cluster has an image. Raises ClusterError."""
    return all(_holds(node, reference) for node in nodes(name))


def _holds(node: str, reference: str) -> bool:
    # kind's own look compares digests, which differ where Docker keeps its images in containerd.
    return attempt("docker", "exec", node, "crictl", "inspecti", "-q", reference).returncode == 0


def load(name: str, reference: str, log: Path, cwd: Path) -> None:
    """Copy an image of the Docker engine into every node. Raises ClusterError."""
    run_logged(log, "kind", "load", "docker-image", reference, "--name", name, cwd=cwd)
