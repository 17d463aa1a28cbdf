"""Write the messages of the Open Inference Protocol over gRPC, generated from the .proto beside them: `python -m tools.protobuf [--check]`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from grpc_tools import protoc

from fettle.api.generated import write

FOLDER = Path(__file__).parents[1] / "operator" / "fettle" / "server"
PROTO = "inference.proto"


def files() -> Iterator[tuple[Path, str]]:
    """Each file with what it must hold. Raises RuntimeError where the compiler refuses the .proto, and says why on stderr."""
    with tempfile.TemporaryDirectory(prefix="fettle-protoc-") as folder:
        arguments = [f"--proto_path={FOLDER}", f"--python_out={folder}", f"--pyi_out={folder}", PROTO]
        if protoc.main(["protoc", *arguments]):
            raise RuntimeError(f"protoc refuses {FOLDER / PROTO}")
        for made in sorted(Path(folder).iterdir()):
            yield FOLDER / made.name, made.read_text(encoding="utf-8")


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit status 1 if a file differs.")
def main(check: bool) -> None:
    """Write operator/fettle/server/inference_pb2.py and its types."""
    write(list(files()), check=check)


if __name__ == "__main__":
    main()
