"""Ask a server of this checkout with each project's client, in that project's own environment; exit status 1 if one does not work."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import click
from bench.peers.environments import python
from onnx import helper
from tools.serving import ServerProcess, open_store, publish, saved

from fettle.api.signature import BY_V2, Signature, Tensor

CLIENTS = ("kserve", "mlserver")
DTYPES = {"kserve": ("FP32", "FP16", "INT64", "BOOL", "BYTES"), "mlserver": ("FP32", "INT64", "BOOL", "BYTES")}


def serve(root: Path, dtypes: tuple[str, ...]) -> ServerProcess:
    """A server that answers each input x_<type> as the output y_<type>."""
    x, y = (
        tuple(Tensor(name=f"{letter}_{dtype}", dtype=dtype, shape=(-1, 2), batch_axis=0) for dtype in dtypes)
        for letter in "xy"
    )
    infos = [
        [helper.make_tensor_value_info(tensor.name, BY_V2[tensor.dtype].onnx, ["N", 2]) for tensor in side]
        for side in (x, y)
    ]
    nodes = [helper.make_node("Identity", [left.name], [right.name]) for left, right in zip(x, y, strict=True)]
    model = helper.make_model(
        helper.make_graph(nodes, "echo", *infos), opset_imports=[helper.make_opsetid("", 17)], ir_version=10
    )
    sha256 = publish(open_store(root / "store"), saved(model, root), Signature(inputs=x, outputs=y))
    return ServerProcess(root / "store", sha256, root / "model", model="echo")


def ask(name: str) -> bool:
    """Whether the client works; what it did is printed."""
    with tempfile.TemporaryDirectory(prefix="fettle-clients-") as folder:
        server = serve(Path(folder), DTYPES[name])
        try:
            script = Path(__file__).with_name(f"{name}_client.py")
            done = subprocess.run([python(name), script, str(server.port), str(server.grpc)], check=False)
        finally:
            server.stop()
    click.echo(f"{name}: {'works' if not done.returncode else 'FAILED'}")
    return not done.returncode


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(CLIENTS))
def main(names: tuple[str, ...]) -> None:
    """Ask with these clients, or with all."""
    results = [ask(name) for name in names or CLIENTS]
    raise SystemExit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
