"""Takes a model of each source format from its file to a served artifact: `python -m bench.formats [TOOLCHAIN…] [--work FOLDER]`.

Each format's model is optimized in the environment that has its framework (`tools/toolchains`), and what is published is served here, by the server
of a pod, and asked for the answers that its manifest promises. Prints a table and writes bench/results/formats.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench.format_cases import CASES, OWN
from rich.console import Console
from rich.table import Table
from tools.cluster.shell import Progress
from tools.serving import ServerProcess
from tools.toolchains import environment
from tools.toolchains.toolchain import toolchains

from fettle.runtimes import cpu
from fettle.store.manifest import REFERENCE, read_fetched, read_reference

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "formats.json"
KEYS = ("format", "package", "cpu", "originalMilliseconds", "winner", "speedup", "drop", "outputsEqual", "served")
MODEL = "bench"


def interpreter(name: str) -> str:
    """Python of the environment that has a toolchain."""
    if name == OWN:
        return sys.executable
    (toolchain,) = toolchains((name,))
    return str(environment.make(toolchain, Progress(name)))


def rows(name: str, work: Path) -> Iterator[dict[str, Any]]:
    """The rows of a toolchain's cases as they end, each with whether its artifact is served."""
    command = [interpreter(name), "-m", "bench.format_cases", name, str(work)]
    told = {**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=told, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            row: dict[str, Any] = json.loads(line)
            sha256, folder = row.get("artifact"), Path(row["folder"])
            yield row | {"cpu": cpu.detect().label, "served": sha256 is not None and is_served(folder, sha256)}
    if process.returncode:
        sys.exit(f"{name}: the cases ended with {process.returncode}")


def is_served(folder: Path, sha256: str) -> bool:
    """Whether a server of the artifact gives the answers that the artifact's reference promises."""
    server = ServerProcess(folder / "store", sha256, folder / "served", model=MODEL, revision="bench")
    try:
        manifest = read_fetched(folder / "served", sha256)
        inputs, outputs = read_reference(folder / "served" / REFERENCE)
        found = _asked(server.port, inputs, {tensor.name: tensor.dtype for tensor in manifest.signature.inputs})
        return all(
            _alike(found[name], outputs[name], tolerance.rtol, tolerance.atol)
            for name, tolerance in manifest.tolerances.items()
        )
    finally:
        server.stop()


def _asked(port: int, feed: dict[str, np.ndarray], dtypes: dict[str, str]) -> dict[str, np.ndarray]:
    inputs = [
        {"name": name, "datatype": dtypes[name], "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in feed.items()
    ]
    url = f"http://127.0.0.1:{port}/v2/models/{MODEL}/infer"
    request = urllib.request.Request(url, json.dumps({"inputs": inputs}).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        outputs = json.load(answer)["outputs"]
    return {row["name"]: np.array(row["data"]).reshape(row["shape"]) for row in outputs}


def _alike(found: np.ndarray, promised: np.ndarray, rtol: float, atol: float) -> bool:
    if promised.dtype.kind in "OUS":
        return bool(np.array_equal(found.astype(str), promised.astype(str)))
    return bool(
        np.allclose(found.astype(np.float64), promised.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True)
    )


def table(results: Sequence[dict[str, Any]]) -> Table:
    """The results for a person."""
    made = Table(box=None, pad_edge=False)
    for name in ("FORMAT", "PACKAGE", "MS", "WINNER", "SPEEDUP", "DROP", "OUTPUTS EQUAL", "SERVED"):
        made.add_column(name, overflow="fold")
    for row in results:
        milliseconds, speedup, drop = row.get("originalMilliseconds"), row.get("speedup"), row.get("drop")
        made.add_row(
            row["format"],
            row["package"],
            f"{milliseconds:.3f}" if milliseconds is not None else "",
            row.get("winner") or str(row["reason"]),
            f"{speedup['value']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]" if speedup else "",
            f"{drop['value']:.3f} [{drop['low']:.3f}, {drop['high']:.3f}]" if drop else "",
            {True: "yes", False: "no", None: "nothing converted"}[row.get("outputsEqual")],
            "yes" if row["served"] else "no",
        )
    return made


def main() -> None:
    """Exit status 1 where a format does not come to a served artifact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "toolchains", nargs="*", metavar="TOOLCHAIN", help=f"of {', '.join(CASES)}; all where none is given"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "fettle-formats", help="folder for what is done"
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.toolchains) - set(CASES)):
        parser.error(f"no such toolchain: {', '.join(unknown)}; there are {', '.join(CASES)}")
    results = []
    for name in options.toolchains or CASES:
        for row in rows(name, options.work):
            results.append(row)
            print(json.dumps(row), file=sys.stderr)
    RESULTS.write_text(json.dumps([{key: row.get(key) for key in KEYS} for row in results], indent=2) + "\n")
    Console(width=180).print(table(results))
    failed = [f"{row['format']} ({row['package']})" for row in results if not row["served"]]
    sys.exit(f"not served as promised: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
