"""Argo CD as processes beside a cluster: repo-server, application controller and API server of the program that argocd/go.mod pins."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.cluster.network import enter
from tools.cluster.shell import Progress, tool_path, wait_until
from tools.cluster.target import Target
from tools.demo.kube import BIN, DemoError, Kube
from tools.integrations.programs import ARGOCD, REDIS, ensure, module_folder

NAMESPACE = "argocd"
PART_OF = {"app.kubernetes.io/part-of": "argocd"}
MODULE = "github.com/argoproj/argo-cd/v3"
CRDS = ("application-crd.yaml", "appproject-crd.yaml", "applicationset-crd.yaml")
REDIS_ADDRESS, REPO_SERVER, SERVER = "127.0.0.1:16379", "127.0.0.1:18081", "127.0.0.1:18090"
READY_SECONDS = 60.0
Object = dict[str, Any]


@dataclass(frozen=True)
class ArgoCD:
    """A running Argo CD. It keeps its logs in `folder`."""

    kube: Kube
    folder: Path
    program: Path

    def cli(self, *arguments: str) -> str:
        """Output of `argocd ARGUMENTS` against its API server. Raises DemoError with its words."""
        server = ("--server", SERVER, "--plaintext", "--config", str(self.folder / "cli.yaml"))
        return self.run(*arguments, *server)

    def run(self, *arguments: str, check: bool = True) -> str:
        """Output of `argocd ARGUMENTS`."""
        command = [*_inside(self.kube.target), str(self.program), *arguments]
        done = subprocess.run(
            command, env=_environment(self.kube, self.folder), capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise DemoError(f"argocd {' '.join(arguments)}: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout

    def app(self, name: str) -> Object:
        """An Application; empty where there is none."""
        text = self.kube.kubectl("get", "application", name, "--ignore-not-found", "-o", "json")
        found: Object = json.loads(text) if text.strip() else {}
        return found

    def refresh(self, name: str) -> None:
        """Have it look at git now."""
        self.kube.kubectl("annotate", "application", name, "argocd.argoproj.io/refresh=normal", "--overwrite")

    def resources(self, name: str) -> dict[tuple[str, str], Object]:
        """What an Application says of each of its objects, by kind and name."""
        found = (self.app(name).get("status") or {}).get("resources") or []
        return {(each["kind"], each["name"]): each for each in found}

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in sorted(self.folder.glob("*.log"))
        )


def state(app: Mapping[str, Any]) -> tuple[str, str]:
    """Sync and health of an Application."""
    status = app.get("status") or {}
    sync, health = status.get("sync") or {}, status.get("health") or {}
    return sync.get("status", ""), health.get("status", "")


@contextmanager
def running(target: Target, folder: Path, progress: Progress) -> Iterator[ArgoCD]:
    """Argo CD on a cluster, with nothing in it but the project `default`. Its objects stay, its processes end."""
    kube = Kube(target, NAMESPACE)
    argocd = ArgoCD(kube, folder, ensure(ARGOCD, progress))
    redis = ensure(REDIS, progress)
    _install(kube, module_folder(MODULE, ARGOCD, progress) / "manifests" / "crds")
    with ExitStack() as processes:
        for name, command in _commands(argocd, redis).items():
            processes.enter_context(_process(argocd, name, command))
        if not wait_until(lambda: _answers(argocd), READY_SECONDS, pause=0.5):
            raise DemoError(f"Argo CD did not start:\n{argocd.logs()}")
        progress("Argo CD answers")
        yield argocd


def _answers(argocd: ArgoCD) -> bool:
    try:
        argocd.cli("app", "list", "-o", "name")
    except DemoError:
        return False
    return True


def _commands(argocd: ArgoCD, redis: Path) -> dict[str, Sequence[str]]:
    binary, kubeconfig = str(argocd.program), str(argocd.kube.target.kubeconfig)
    in_cluster = ("--kubeconfig", kubeconfig, "--namespace", NAMESPACE, "--redis", REDIS_ADDRESS)
    repo = ("--repo-server", REPO_SERVER, "--repo-server-plaintext")
    ports = ("--port", SERVER.rpartition(":")[2], "--metrics-port", "18083")
    return {
        "redis": (str(redis), REDIS_ADDRESS),
        "argocd-repo-server": (
            *(binary, "--address", "127.0.0.1", "--port", REPO_SERVER.rpartition(":")[2], "--metrics-port", "18084"),
            *("--redis", REDIS_ADDRESS, "--disable-tls", "--revision-cache-expiration", "2s"),
        ),
        "argocd-application-controller": (
            *(binary, *in_cluster, *repo),
            "--metrics-port",
            "18082",
            "--persist-resource-health",
        ),
        "argocd-server": (binary, *in_cluster, *repo, *ports, "--address", "127.0.0.1", "--disable-auth", "--insecure"),
    }


def _inside(target: Target) -> list[str]:
    """The embedded cluster's network has ports of its own."""
    return enter(target.paths.cluster) if target.paths is not None else []


def _environment(kube: Kube, folder: Path) -> dict[str, str]:
    """What the image of Argo CD sets, in folders of ours."""
    places = {
        name: str(folder / name.lower())
        for name in (
            *("ARGOCD_TLS_DATA_PATH", "ARGOCD_SSH_DATA_PATH", "ARGOCD_GNUPGHOME", "ARGOCD_GPG_DATA_PATH"),
            *("ARGOCD_PLUGINSOCKFILEPATH", "TMPDIR", "HOME"),
        )
    }
    for place in places.values():
        Path(place).mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("LANG", "TZ") if name in os.environ}
    settings = {"ARGOCD_FAKE_IN_CLUSTER": "true", "ARGOCD_GPG_ENABLED": "false"}
    return kept | places | settings | {"PATH": f"{BIN}:{tool_path()}", "KUBECONFIG": str(kube.target.kubeconfig)}


@contextmanager
def _process(argocd: ArgoCD, name: str, command: Sequence[str]) -> Iterator[None]:
    environment = _environment(argocd.kube, argocd.folder) | {"ARGOCD_BINARY_NAME": name}
    with (
        (argocd.folder / f"{name}.log").open("wb") as log,
        subprocess.Popen([*_inside(argocd.kube.target), *command], env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _install(kube: Kube, crds: Path) -> None:
    """Its kinds, its settings and a project that allows everything."""
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    kube.apply([space])
    for name in CRDS:
        kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crds / name))
    kube.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/applications.argoproj.io")
    everything = {"group": "*", "kind": "*"}
    project = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AppProject",
        "metadata": {"name": "default", "namespace": NAMESPACE},
        "spec": {
            "sourceRepos": ["*"],
            "destinations": [{"server": "*", "namespace": "*"}],
            "clusterResourceWhitelist": [everything],
        },
    }
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    secret = {**_setting("Secret", "argocd-secret"), "stringData": {"server.secretkey": key}}
    kube.apply([_setting("ConfigMap", "argocd-cm"), _setting("ConfigMap", "argocd-rbac-cm"), secret, project])


def _setting(kind: str, name: str) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE, "labels": PART_OF}}
