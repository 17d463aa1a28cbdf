"""`python -m tools.demo run|clean`."""

from __future__ import annotations

import sys

import click

from tools.cluster.target import resolve_target
from tools.demo import scenes, show
from tools.demo.install import SYSTEM_NAMESPACE
from tools.demo.kube import DemoError, Kube


@click.group(help="The whole chain on a real cluster: optimize, serve, canary, roll back.")
def main() -> None:
    """Entry point."""


@main.command(help="Run the demo. It leaves everything running; a second run starts from what is there.")
@click.option(
    "--delete-operator-every",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Delete the operator's pods this often while the demo runs; it must end the same.",
)
def run(delete_operator_every: float | None) -> None:
    """Run every scene."""
    try:
        scenes.run(resolve_target(), delete_operator_every)
    except DemoError as error:
        show.console.print(f"\ndemo: {error}", markup=False, style="bold red")
        sys.exit(1)


@main.command(help="Remove what the demo made: its namespace, and the operator unless somebody else's objects need it.")
def clean() -> None:
    """Remove both namespaces' content."""
    target = resolve_target()
    kube = Kube(target, SYSTEM_NAMESPACE)
    kube.kubectl("delete", "namespace", scenes.NAMESPACE, "--ignore-not-found", "--wait=true")
    others = namespaces_in_use(kube)
    if others:
        show.line(f"the demo's namespace is gone; the operator stays for the objects in {', '.join(others)}")
        return
    kube.kubectl("delete", "namespace", SYSTEM_NAMESPACE, "--ignore-not-found", "--wait=true")
    show.line("the demo's namespace and the operator are gone; `make cluster-down` stops the cluster")


def namespaces_in_use(kube: Kube) -> list[str]:
    """The namespaces that hold objects of ours."""
    columns = ("-o", "custom-columns=N:.metadata.namespace", "--no-headers")
    # Without the CRDs kubectl complains of the kinds, and there are none.
    return sorted(set(kube.kubectl("get", "om,mdep", "--all-namespaces", *columns, check=False).split()))


if __name__ == "__main__":
    main()
