"""`fettle serve`: the server of a pod on this machine, no cluster."""

from __future__ import annotations

import logging
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import uvloop

from fettle.cli.entry import EXIT_FAILURE, Failure
from fettle.cli.local.model_options import gathered
from fettle.cli.local.mounts import DEFAULT_FOLDER
from fettle.cli.local.served import ServedFolder, served_folder
from fettle.errors import FettleError, UsageError
from fettle.runtimes.artifact import require_machine
from fettle.server import example
from fettle.server.pod import serve as run
from fettle.server.ports import require_free
from fettle.server.settings import ServerSettings
from fettle.signals import leave
from fettle.store.manifest import Manifest, read_fetched

MOST_IN_A_LINE = 4096  # bytes of a request that is shown in the command itself; a larger one is written to a file
LOCAL = "local"  # the revision of a model that no ModelDeployment serves
_PORT = click.IntRange(1, 65535)


@dataclass(frozen=True)
class Ports:
    """Where the server listens."""

    host: str
    port: int
    grpc_port: int
    management_port: int

    def require_free(self) -> None:
        """Raises UsageError that names the port that cannot be listened on."""
        for option, port in (
            ("port", self.port),
            ("grpc-port", self.grpc_port),
            ("management-port", self.management_port),
        ):
            try:
                require_free(self.host, port)
            except OSError as error:
                raise UsageError(f"{error.strerror}; choose another one with --{option}") from error


ports_options = gathered(
    "ports",
    Ports,
    click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on."),
    click.option("--port", type=_PORT, default=8080, show_default=True, metavar="N", help="Port for HTTP."),
    click.option("--grpc-port", type=_PORT, default=9000, show_default=True, metavar="N", help="Port for gRPC."),
    click.option(
        "--management-port",
        type=_PORT,
        default=8081,
        show_default=True,
        metavar="N",
        help="Port for health, metrics and the counts for a canary's analysis.",
    ),
)


@click.command()
@click.argument("source", metavar="MODEL")
@click.option("--target", metavar="NAME", help="Target whose artifact is served, for a MODEL with several targets.")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    metavar="FOLDER",
    help="Store to search for a MODEL that is given by name.",
)
@click.option(
    "--name", metavar="NAME", help="Name of the model in URLs [default: the name of MODEL, or of its folder]."
)
@click.option(
    "--threads", type=click.IntRange(1, 256), metavar="N", help="Threads for one inference [default: the artifact's]."
)
@ports_options
def serve(source: str, target: str | None, store: Path, name: str | None, threads: int | None, ports: Ports) -> None:
    """Serve an optimized model on this machine, as a pod serves it.

    MODEL is the name of a model that `fettle optimize` published to the store, or the folder of an artifact, as `fettle pull` writes it. The
    server is the same as in pods: the Open Inference Protocol V2 over HTTP and gRPC, the V1 protocol, metrics. When it is ready, the
    command prints a request that works for this model. Ctrl-C ends it. Other settings of the server are read from the environment
    (FETTLE_SERVER_…).

    \b
    fettle serve digits
    fettle serve ./winner --port 9080 --threads 2
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with tempfile.TemporaryDirectory(prefix="fettle-serve-") as temporary:
        folder = Path(temporary)
        ports.require_free()
        served = served_folder(source, store.expanduser(), target, folder / "artifact")
        manifest = read_fetched(served.folder, served.sha256)
        require_machine(manifest, "it was optimized on another machine: run `fettle optimize` here")
        status = _serve(_settings(served, name, threads, ports), folder)
    leave(status)


def _serve(settings: ServerSettings, folder: Path) -> int:
    """Until a signal; the exit status. `folder` is for a request that is too long to be shown."""
    try:
        uvloop.run(run(settings, lambda manifest: click.echo(startup_text(settings, manifest, folder))))
    except FettleError as error:
        Failure(error).show()
        return EXIT_FAILURE
    return 0


def _settings(served: ServedFolder, name: str | None, threads: int | None, ports: Ports) -> ServerSettings:
    """The server's own, with those that the environment gives; nobody routes requests here, so that nothing is waited for at the end."""
    given: dict[str, Any] = {
        "folder": served.folder,
        "sha256": served.sha256,
        "model": name or served.name,
        "revision": LOCAL,
        "samples": 0,
        "drain_seconds": 0,
        **({"threads": threads} if threads is not None else {}),
    }
    return ServerSettings(**vars(ports), **given)


def startup_text(settings: ServerSettings, manifest: Manifest, folder: Path) -> str:
    """What is printed when requests are answered: what is served where, and on the last line a command that asks it."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    port, signature = settings.port, manifest.signature
    request = example.body(signature, example.item(signature, settings.folder))
    data = shlex.quote(request.decode())
    if len(request) > MOST_IN_A_LINE:
        path = folder / "request.json"
        path.write_bytes(request)
        data = f"@{path}"
    what = f"{settings.model}: {manifest.recipe.name} in {manifest.runtime}, HTTP on {host}:{port}, gRPC on {host}:{settings.grpc_port}"
    return f"{what}; press Ctrl-C to stop\ncurl -s http://{host}:{port}/v2/models/{settings.model}/infer -d {data}"
