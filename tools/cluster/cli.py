"""The commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from tools.cluster.errors import ClusterError, InUseError, TakenError
from tools.cluster.paths import CLUSTERS, FETTLE, TEST, Cluster, checkout
from tools.cluster.shell import Progress


class _Group(click.Group):
    """Turns a ClusterError into one line and exit code 1."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except ClusterError as error:
            raise click.ClickException(str(error)) from error


def _cluster(_: click.Context, __: click.Parameter, name: str | None) -> Cluster | None:
    return next((cluster for cluster in CLUSTERS if cluster.name == name), None)


def _named(default: Cluster | None, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option that says which cluster."""
    names = click.Choice([cluster.name for cluster in CLUSTERS])
    name = default.name if default else None
    return click.option("--name", "cluster", type=names, default=name, callback=_cluster, help=text)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Real Kubernetes clusters on this machine, each in its own network namespace, without Docker.

    etcd, kube-apiserver, controller-manager, scheduler, kubelet, containerd, kube-proxy, CoreDNS, a local OCI registry and a
    default StorageClass. Needs Linux and root. Everything lies in .cluster/: kubeconfig, bin (kubectl, helm), logs, state.

    There are two, and they may run side by side: `fettle` is the one to look at, `fettle-test` belongs to tests and benchmarks.
    """


@main.command(short_help="Start whatever of a cluster does not run.")
@_named(FETTLE, "Which one; fettle by default.")
def up(cluster: Cluster) -> None:
    """Start the cluster, or whatever of it does not run. The first time builds it: 10 minutes."""
    from tools.cluster import lifecycle

    paths, progress = checkout(cluster), Progress(cluster.name)
    started = lifecycle.up(paths, progress)
    progress(f"{'up' if started else 'runs already'}: export KUBECONFIG={paths.kubeconfig}")


@main.command(short_help="Stop them and leave nothing behind.")
@_named(None, "Which one; by default every one that no command uses.")
@click.option("--purge", is_flag=True, help="Remove objects and volumes too; binaries, built images and caches stay.")
def down(cluster: Cluster | None, purge: bool) -> None:
    """Stop them and leave nothing behind in the kernel, also after a crash. Their state is kept for the next `up`."""
    from tools.cluster import fresh, lifecycle

    for each in (cluster,) if cluster else CLUSTERS:
        paths, progress = checkout(each), Progress(each.name)
        try:
            with fresh.in_use(paths):
                lifecycle.down(paths, progress, purge=purge)
        except (InUseError, TakenError) as error:
            if cluster or (purge and isinstance(error, InUseError)):
                raise
            progress(str(error))


@main.command(short_help="The state of everything.")
def status() -> None:
    """Every component, the node, pods, volumes, disk. Exit code 1 when something is not well."""
    from tools.cluster import status as report

    sys.exit(0 if report.show_all([checkout(cluster) for cluster in CLUSTERS]) else 1)


@main.command(short_help="Install packages, build binaries.")
def install() -> None:
    """Install packages and build binaries, without starting anything."""
    from tools.cluster import lifecycle

    progress = Progress()
    lifecycle.install(checkout(), progress)
    progress("everything is installed")


@main.command(
    short_help="Run a command with an empty cluster of its own.", context_settings={"ignore_unknown_options": True}
)
@click.option("--images", is_flag=True, help="With Fettle's images in its registry.")
@click.option("--torch", is_flag=True, help="The images with PyTorch as well.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(images: bool, torch: bool, command: tuple[str, ...]) -> None:
    """Run COMMAND while the cluster fettle-test runs: empty at the start, stopped at the end, also when COMMAND fails.

    With FETTLE_KUBECONFIG no cluster is started or stopped: COMMAND runs on the one that it names.
    """
    from tools.cluster import fresh
    from tools.cluster import images as module
    from tools.cluster.target import is_named, resolve_target

    names = (*module.NAMES, *(module.TORCH_NAMES if torch else ())) if images or torch else ()
    paths = checkout(TEST)
    if not is_named():
        sys.exit(fresh.run(paths, command, names, Progress(TEST.name)))
    target, progress = resolve_target(), Progress()
    progress(f"on the cluster that FETTLE_KUBECONFIG names: {target.kubeconfig}")
    if names:
        module.build(paths, target, progress, names)
    sys.exit(fresh.play(command))


@main.command(short_help="Print the kubeconfig to use.")
@_named(FETTLE, "Which one; fettle by default.")
def kubeconfig(cluster: Cluster) -> None:
    """Print the path of the kubeconfig to use: the embedded cluster's, or what FETTLE_KUBECONFIG names."""
    from tools.cluster.target import resolve_target

    click.echo(resolve_target(paths=checkout(cluster)).kubeconfig)


@main.command()
@_named(FETTLE, "Whose; fettle's by default.")
def registry(cluster: Cluster) -> None:
    """Print the registry that images go to."""
    from tools.cluster.target import resolve_target

    click.echo(resolve_target(paths=checkout(cluster)).registry or cluster.registry)


@main.command(short_help="Build and push Fettle's images.")
@click.argument("names", nargs=-1)
@_named(FETTLE, "Whose registry; fettle's by default.")
@click.option("--torch", is_flag=True, help="The images with PyTorch as well: 1.3 GB more each.")
def images(names: tuple[str, ...], cluster: Cluster, torch: bool) -> None:
    """Build and push Fettle's images, where the registry lacks them; prints NAME=REFERENCE for each.

    NAMES: operator, server, optimizer by default; server-torch, optimizer-torch.
    """
    from tools.cluster import images as module
    from tools.cluster.target import resolve_target

    every = (*module.NAMES, *module.TORCH_NAMES)
    unknown = set(names) - set(every)
    if unknown:
        raise ClusterError(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    paths, progress = checkout(cluster), Progress(cluster.name, stderr=True)
    wanted = names or (every if torch else module.NAMES)
    for name, reference in module.build(paths, resolve_target(paths=paths), progress, wanted).items():
        click.echo(f"{name}={reference}")
