"""The demo with its files and its store on an S3 server, which is killed once in each stage: `python -m tools.integrations.demo_on_s3`.

The server runs beside the embedded cluster and is as far away as any other is. The demo has a namespace of its own, which is removed in the end.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from fettle.cluster.jobs import STAGE_LABEL
from tools.cluster.target import resolve_target
from tools.demo import scenes, show
from tools.demo.background import Background
from tools.demo.kube import DemoError, Kube
from tools.demo.place import Bucket
from tools.integrations.s3 import Gateway

NAMESPACE = "fettle-demo-s3"
BUCKET = "demo"
STAGES = ("prepare", "build", "measure", "publish")


class Outages(Background):
    """Kills the server once in each stage, as soon as a pod of that stage runs, for `seconds`, as long as the `with` block runs."""

    def __init__(self, kube: Kube, gateway: Gateway, seconds: float) -> None:
        super().__init__("outages", every=0.3)
        self.kube, self.gateway, self.seconds = kube, gateway, seconds
        self.over = set[str]()  # stages

    def turn(self) -> None:
        """An outage in each stage that runs and had none."""
        for stage in [each for each in STAGES if each not in self.over and self._is_running(each)]:
            show.line(f"the S3 server is away for {self.seconds:g} s, in the middle of {stage}")
            self.gateway.kill()
            self.pause(self.seconds)
            self.gateway.start()
            show.line("the S3 server is back")
            self.over.add(stage)

    def _is_running(self, stage: str) -> bool:
        selector = f"{STAGE_LABEL}={stage}"
        found = self.kube.core.list_namespaced_pod(self.kube.namespace, label_selector=selector).items
        return any(pod.status.phase == "Running" for pod in found)


@click.command(help=__doc__)
@click.option("--away", default=60.0, show_default=True, metavar="SECONDS", help="How long the server stays killed.")
def main(away: float) -> None:
    """Run the demo."""
    target = resolve_target()
    if target.paths is None:
        raise click.ClickException("the server can only be reached from the embedded cluster: unset FETTLE_KUBECONFIG")
    kube = Kube(target, NAMESPACE)
    with tempfile.TemporaryDirectory(prefix="fettle-s3-") as folder:
        gateway = Gateway(Path(folder) / "gateway", host=target.paths.cluster.host_address)
        gateway.folder.mkdir()
        gateway.start()
        try:
            _run(kube, gateway, Path(folder) / "keys", away)
        except DemoError as error:
            show.console.print(f"\ndemo: {error}", markup=False, style="bold red")
            sys.exit(1)
        finally:
            try:
                kube.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true")
            finally:
                gateway.kill()


def _run(kube: Kube, gateway: Gateway, keys: Path, away: float) -> None:
    place = Bucket(f"s3://{BUCKET}", gateway.bucket(BUCKET).keys(keys))
    with Outages(kube, gateway, away) as outages:
        scenes.run(kube, place)
    if missed := set(STAGES) - outages.over:
        raise DemoError(
            f"the server was never away in {', '.join(sorted(missed))}: the demo has to begin with an empty store"
        )
    show.line(f"the S3 server was away for {away:g} s in each of {', '.join(STAGES)}")


if __name__ == "__main__":
    main()
