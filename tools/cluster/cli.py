"""The commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tools.cluster.errors import ClusterError, InUseError, TakenError
from tools.cluster.paths import CLUSTERS, FETTLE, TEST, Cluster, Paths, checkout
from tools.cluster.shell import Progress, megabytes


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
    """Real Kubernetes clusters on this machine.

    There are three clusters, which may run side by side: `fettle` for the demo, `fettle-test` for tests and benchmarks, and
    `fettle-integrations` for the tests with other systems.

    An embedded cluster runs in its own network namespace, without Docker. It consists of etcd, kube-apiserver, controller-manager,
    scheduler, kubelet, containerd, kube-proxy, CoreDNS, a local OCI registry and a default StorageClass. It needs Linux and root. Its
    files are in .cluster/: kubeconfig, bin (kubectl, helm), logs and state.

    Where a Docker engine answers and kind, kubectl and helm are installed, kind runs the cluster `fettle` instead. FETTLE_CLUSTER=kind
    or FETTLE_CLUSTER=embedded chooses. The other two are always embedded ones.
    """


@main.command(short_help="Start a cluster.")
@_named(FETTLE, "Name of the cluster; fettle by default.")
def up(cluster: Cluster) -> None:
    """Start the cluster, or what is not running of it, and say which one it is and why.

    The first start of an embedded cluster builds Kubernetes, which takes 5 to 12 minutes on two cores.
    """
    from tools.cluster import choice, kind, lifecycle

    paths, progress = checkout(cluster), Progress(cluster.name)
    provider = choice.Provider.EMBEDDED
    if cluster == FETTLE:
        chosen = choice.choose(choice.look(paths))
        progress(f"using the {chosen.provider.value} cluster: {chosen.why}")
        provider = chosen.provider
    if provider is choice.Provider.NAMED:
        return
    started = (kind if provider is choice.Provider.KIND else lifecycle).up(paths, progress)
    progress(f"{'up' if started else 'already running'}: export KUBECONFIG={paths.kubeconfig}")


@main.command(short_help="Stop the clusters.")
@_named(None, "Name of the cluster; by default every one that no command is using.")
@click.option("--purge", is_flag=True, help="Also remove objects and volumes. Binaries, built images and caches stay.")
def down(cluster: Cluster | None, purge: bool) -> None:
    """Stop the clusters and leave nothing behind in the kernel, even after a crash. Their state is kept for the next `up`.

    A cluster of kind is deleted.
    """
    from tools.cluster import fresh

    for each in (cluster,) if cluster else CLUSTERS:
        paths, progress = checkout(each), Progress(each.name)
        try:
            with fresh.in_use(paths):
                _down(paths, progress, purge)
        except (InUseError, TakenError) as error:
            if cluster or (purge and isinstance(error, InUseError)):
                raise
            progress(str(error))
    if not purge:
        _tell_kept(checkout().home)


def _tell_kept(folder: Path) -> None:
    """What stays on the disk, and what removes it."""
    if used := megabytes(folder):
        text = f"{used / 1024:.1f} GB stay in {folder} for the next start: binaries, images, state"
        click.echo(f"{text}; `make clean` removes them, and .venv")


def _down(paths: Paths, progress: Progress, purge: bool) -> None:
    from tools.cluster import kind, lifecycle

    if kind.is_ours(paths):
        kind.down(paths, progress)
    # Without root there never was an embedded cluster, and looking for what it left needs root.
    if os.geteuid() == 0 or paths.cluster.run.exists():
        lifecycle.down(paths, progress, purge=purge)


@main.command(short_help="Show the state of all components.")
def status() -> None:
    """Show the state of every component, the node, pods, volumes and the disk. The exit code is 1 if something is wrong."""
    from tools.cluster import status as report

    sys.exit(0 if report.show_all([checkout(cluster) for cluster in CLUSTERS]) else 1)


@main.command(short_help="Install packages, build binaries.")
def install() -> None:
    """Install packages and build binaries, without starting anything."""
    from tools.cluster import lifecycle

    progress = Progress()
    lifecycle.install(checkout(), progress)
    progress("everything is installed")


@main.command(short_help="Run a command with its own empty cluster.", context_settings={"ignore_unknown_options": True})
@_named(TEST, f"Name of the cluster; {TEST.name} by default.")
@click.option("--images", is_flag=True, help="Build and push Fettle's images first.")
@click.option("--torch", is_flag=True, help="Include the PyTorch images.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(cluster: Cluster, images: bool, torch: bool, command: tuple[str, ...]) -> None:
    """Run COMMAND with a cluster that is empty at the start and is stopped at the end, even if COMMAND fails.

    If FETTLE_KUBECONFIG is set, no cluster is started or stopped, and COMMAND runs on the cluster that it names.
    """
    from tools.cluster import fresh
    from tools.cluster import images as module
    from tools.cluster.target import is_named, resolve_target

    names = (*module.NAMES, *(module.TORCH_NAMES if torch else ())) if images or torch else ()
    paths = checkout(cluster)
    if not is_named():
        sys.exit(fresh.run(paths, command, names, Progress(cluster.name)))
    target, progress = resolve_target(), Progress()
    progress(f"using the cluster of FETTLE_KUBECONFIG: {target.kubeconfig}")
    if names:
        module.build(paths, target, progress, names)
    sys.exit(fresh.play(command))


@main.command(short_help="Print the kubeconfig to use.")
@_named(FETTLE, "Name of the cluster; fettle by default.")
def kubeconfig(cluster: Cluster) -> None:
    """Print the path of the kubeconfig to use: that of the cluster that was started here, or the one that FETTLE_KUBECONFIG names."""
    from tools.cluster.target import resolve_target

    click.echo(resolve_target(paths=checkout(cluster)).kubeconfig)


@main.command()
@_named(FETTLE, "Name of the cluster; fettle by default.")
def registry(cluster: Cluster) -> None:
    """Print the registry that images are pushed to."""
    from tools.cluster.target import resolve_target

    click.echo(resolve_target(paths=checkout(cluster)).registry or cluster.registry)


@main.command(short_help="Build and deliver Fettle's images.")
@click.argument("names", nargs=-1)
@_named(FETTLE, "Cluster whose registry is used; fettle by default.")
@click.option("--torch", is_flag=True, help="Include the PyTorch images (1.3 and 1.6 GB more).")
@click.option(
    "--gpu",
    is_flag=True,
    help="Include the images for NVIDIA GPUs (some GB more each; with --torch also those that have PyTorch).",
)
@click.option(
    "--tensorrt",
    is_flag=True,
    help="Include NVIDIA's TensorRT library in the images for GPUs, for the runtime tensorrt. Needs NVIDIA's package index.",
)
def images(names: tuple[str, ...], cluster: Cluster, torch: bool, gpu: bool, tensorrt: bool) -> None:
    """Build Fettle's images that the registry, or the nodes of kind, lack, deliver them, and print NAME=REFERENCE for each.

    NAMES are operator, server and optimizer by default. server-torch, optimizer-torch, server-gpu, optimizer-gpu, server-gpu-torch,
    optimizer-gpu-torch, optimizer-tensorflow, optimizer-transformers, optimizer-sklearn and server-litert are also available.
    """
    from tools.cluster import images as module
    from tools.cluster.target import resolve_target

    every = (*module.NAMES, *module.TORCH_NAMES, *module.GPU_NAMES, *module.GPU_TORCH_NAMES, *module.FORMAT_NAMES)
    unknown = set(names) - set(every)
    if unknown:
        raise ClusterError(f"unknown image: {', '.join(sorted(unknown))} (available: {', '.join(every)})")
    paths, progress = checkout(cluster), Progress(cluster.name, stderr=True)
    large = ((torch, module.TORCH_NAMES), (gpu, module.GPU_NAMES), (gpu and torch, module.GPU_TORCH_NAMES))
    wanted = names or (*module.NAMES, *(name for asked, group in large if asked for name in group))
    on_gpus = {*wanted} & {*module.GPU_NAMES, *module.GPU_TORCH_NAMES}
    if on_gpus and not tensorrt:
        names_of = ", ".join(sorted(on_gpus))
        progress(
            f"{names_of}: without the runtime tensorrt, whose library is on NVIDIA's package index (make: TENSORRT=1)"
        )
    arguments = {"TENSORRT": "1"} if tensorrt else {}
    for name, reference in module.build(paths, resolve_target(paths=paths), progress, wanted, arguments).items():
        click.echo(f"{name}={reference}")
