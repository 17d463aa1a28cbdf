"""The commands."""

from __future__ import annotations

import sys

import click

from tools.cluster.errors import ClusterError
from tools.cluster.paths import REGISTRY, checkout
from tools.cluster.shell import Progress


class _Group(click.Group):
    """Turns a ClusterError into one line and exit code 1."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except ClusterError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """A real Kubernetes on this machine, in its own network namespace, without Docker.

    etcd, kube-apiserver, controller-manager, scheduler, kubelet, containerd, kube-proxy, CoreDNS, a local OCI registry and a
    default StorageClass. Needs Linux and root. Everything lies in .cluster/: kubeconfig, bin (kubectl, helm), logs, state.
    """


@main.command(short_help="Start whatever of the cluster does not run.")
def up() -> None:
    """Start the cluster, or whatever of it does not run. The first time builds it: 10 minutes."""
    from tools.cluster import lifecycle

    paths, progress = checkout(), Progress()
    started = lifecycle.up(paths, progress)
    progress(f"cluster {'is up' if started else 'runs already'}: export KUBECONFIG={paths.kubeconfig}")


@main.command(short_help="Stop it and leave nothing behind.")
@click.option("--purge", is_flag=True, help="Remove objects, volumes and images too; binaries and caches stay.")
def down(purge: bool) -> None:
    """Stop it and leave nothing behind in the kernel, also after a crash. Its state is kept for the next `up`."""
    from tools.cluster import lifecycle

    lifecycle.down(checkout(), Progress(), purge=purge)


@main.command(short_help="The state of everything.")
def status() -> None:
    """Every component, the node, pods, volumes, disk. Exit code 1 when something is not well."""
    from tools.cluster import status as report

    sys.exit(0 if report.show(checkout()) else 1)


@main.command(short_help="Install packages, build binaries.")
def install() -> None:
    """Install packages and build binaries, without starting anything."""
    from tools.cluster import lifecycle

    progress = Progress()
    lifecycle.install(checkout(), progress)
    progress("everything is installed")


@main.command(short_help="Print the kubeconfig to use.")
def kubeconfig() -> None:
    """Print the path of the kubeconfig to use: the embedded cluster's, or what FETTLE_KUBECONFIG names."""
    from tools.cluster.target import resolve_target

    click.echo(resolve_target().kubeconfig)


@main.command()
def registry() -> None:
    """Print the registry that images go to."""
    from tools.cluster.target import resolve_target

    click.echo(resolve_target().registry or REGISTRY)


@main.command(short_help="Build and push Fettle's images.")
@click.argument("names", nargs=-1)
@click.option("--torch", is_flag=True, help="The images with PyTorch as well: 1.3 GB more each.")
def images(names: tuple[str, ...], torch: bool) -> None:
    """Build and push Fettle's images, where the registry lacks them; prints NAME=REFERENCE for each.

    NAMES: operator, server, optimizer by default; server-torch, optimizer-torch.
    """
    from tools.cluster import images as module
    from tools.cluster.target import resolve_target

    every = (*module.NAMES, *module.TORCH_NAMES)
    unknown = set(names) - set(every)
    if unknown:
        raise ClusterError(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    progress = Progress(stderr=True)
    built = module.build(checkout(), resolve_target(), progress, names or (every if torch else module.NAMES))
    for name, reference in built.items():
        click.echo(f"{name}={reference}")
