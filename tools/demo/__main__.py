"""`python -m tools.demo run|install|clean`."""

from __future__ import annotations

import sys

import click

from tools.cluster.target import resolve_target
from tools.demo import scenes, show
from tools.demo.install import SYSTEM_NAMESPACE
from tools.demo.install import install as install_operator
from tools.demo.kube import DemoError, Kube
from tools.demo.place import Claims


@click.group(help="Demo on a real cluster: optimize, serve, canary, roll back.")
def main() -> None:
    """Entry point."""


@main.command(help="Run the demo. It leaves everything running, and a second run continues from there.")
@click.option(
    "--delete-operator-every",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Delete the operator's pods at this interval while the demo runs. The result must be the same.",
)
def run(delete_operator_every: float | None) -> None:
    """Run every scene."""
    try:
        scenes.run(Kube(resolve_target(), scenes.NAMESPACE), Claims(), delete_operator_every)
    except DemoError as error:
        show.console.print(f"\ndemo: {error}", markup=False, style="bold red")
        sys.exit(1)
    except KeyboardInterrupt:
        show.console.print("\ndemo: interrupted; `make demo` continues from here", markup=False)
        sys.exit(130)


@main.command(help="Install or upgrade the operator with every image that `make images` built.")
def install() -> None:
    """The operator alone."""
    try:
        install_operator(Kube(resolve_target(), SYSTEM_NAMESPACE))
    except DemoError as error:
        raise click.ClickException(str(error)) from error
    show.line("the operator runs with these images")


@main.command(help="Remove the demo's namespace, and the operator unless other objects need it.")
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
