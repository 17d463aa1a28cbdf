"""How long a probe waits while a server is busy with bodies of 63 MiB, of the 64 that it takes. A real server process, its two ports, real HTTP.

    python -m bench.probes [--seconds 10] [--clients 3] [--mib 63]

For each kind of body some clients send one after the other, without a pause. Meanwhile `/healthz`, `/readyz` and `/fettle/window` are asked every
20 ms, each on a new connection as the kubelet does, and small requests are sent to the data port. Prints a table in Markdown: the worst time of
each in milliseconds, what the bodies were answered, and the most memory that the server took. The first row is of a server left alone: how
much of the others is this machine's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tools.serving import ServerProcess, open_store, publish, saved

from fettle.api.signature import Signature, Tensor
from fettle.server.elements import MOST_BYTES_OF_TEXTS, MOST_TEXTS

# All bodies come from one address, of whose share this makes what two addresses have by default.
ROOM = {"max_bodies_bytes": 192 << 20}
PROBES = ("/healthz", "/readyz", "/fettle/window?since=0")
SIGNATURE = Signature(
    inputs=(
        Tensor(name="x", dtype="FP32", shape=(-1, -1, 4), batch_axis=0),
        Tensor(name="text", dtype="BYTES", shape=(-1, -1), batch_axis=0),
    ),
    outputs=(
        Tensor(name="sum", dtype="FP32", shape=(-1, 1, 1), batch_axis=0),
        Tensor(name="same", dtype="BYTES", shape=(-1, -1), batch_axis=0),
        Tensor(name="twice", dtype="FP32", shape=(-1, -1, 4), batch_axis=0),
    ),
)


def model() -> onnx.ModelProto:
    """sum and twice of x; the texts as they came."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Identity", ["text"], ["same"]),
        helper.make_node("Add", ["x", "x"], ["twice"]),
    ]
    graph = helper.make_graph(
        nodes,
        "probes",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "L", 4]),
            helper.make_tensor_value_info("text", TensorProto.STRING, ["N", "K"]),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", 1, 1]),
            helper.make_tensor_value_info("same", TensorProto.STRING, ["N", "K"]),
            helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["N", "L", 4]),
        ],
        [numpy_helper.from_array(np.array([1, 2], np.int64), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def body(rows: int, numbers: bytes, texts: int, text: bytes, output: str = "sum") -> bytes:
    """A request of one item: `rows` of 4 numbers, `texts` texts."""
    return b'{"inputs":[%b,%b],"outputs":[{"name":"%b"}]}' % (
        b'{"name":"x","datatype":"FP32","shape":[1,%d,4],"data":%b}' % (rows, numbers),
        b'{"name":"text","datatype":"BYTES","shape":[1,%d],"data":%b}' % (texts, text),
        output.encode(),
    )


def flat(unit: bytes, count: int) -> bytes:
    """`unit`, `count` times, as a list."""
    return b"[" + (unit + b",") * (count - 1) + unit + b"]"


def bodies(size: int) -> dict[str, bytes]:
    """Bodies of about `size` bytes, by what is in them."""
    number, one, texts, all_texts = b"0.12345678", b'["a"]', MOST_TEXTS, min(size, MOST_BYTES_OF_TEXTS - 4096)
    row = b"[0.25,0.5,1e3,-2.75]"
    floats, dense, rows = size // 44 * 4, size // 8 * 4, size // (len(row) + 1)
    short, word = b'"ab"', b'"%b"' % (b"a word \\u00fc " * ((all_texts // texts - 3) // 14))
    return {
        "floats": body(floats // 4, flat(number, floats), 1, one),
        "floats, answered as long": body(floats // 4, flat(number, floats), 1, one, "twice"),
        "digits": body(dense // 4, flat(b"1", dense), 1, one),
        "nested numbers": body(rows, b"[" + flat(row, rows) + b"]", 1, one),
        "65,536 texts": body(1, b"[1,2,3,4]", texts, flat(word, texts)),
        "65,536 texts, answered": body(1, b"[1,2,3,4]", texts, flat(word, texts), "same"),
        "2 texts of 4 MB": body(1, b"[1,2,3,4]", 2, flat(b'"%b"' % (b"x" * (all_texts // 2 - 9)), 2)),
        "short texts without end": body(1, b"[1,2,3,4]", 1, flat(short, size // 5)),
        "empty lists": body(1, flat(b"[]", size // 3), 1, one),
        "empty lists beside the data": b'{"parameters":%b}' % flat(b"[]", size // 3),
        "one text without end": body(1, b"[1,2,3,4]", 1, b'["%b"]' % (b"x" * size)),
    }


@dataclass
class Seen:
    """Worst milliseconds by what was asked, answers to the large bodies by status, and when to stop."""

    worst: dict[str, float] = field(default_factory=dict)
    answered: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    def ask(self, name: str, port: int, path: str, content: bytes | None) -> None:
        """Ask again and again, each time on a new connection."""
        while not self.over.is_set():
            began = time.perf_counter()
            send(port, path, content)
            took = (time.perf_counter() - began) * 1000
            self.worst[name] = max(self.worst.get(name, 0.0), took)
            time.sleep(0.02)

    def load(self, port: int, content: bytes) -> None:
        """Send a large body again and again."""
        while not self.over.is_set():
            self.answered[send(port, "/v2/models/probes/infer", content)] += 1


def send(port: int, path: str, content: bytes | None) -> str:
    """The answer's status, or what kept it from coming: a refused body's connection may end before all of it is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET" if content is None else "POST", path, content)
        response = connection.getresponse()
        response.read()
        return str(response.status)
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()


def measure(server: ServerProcess, content: bytes | None, clients: int, seconds: float) -> Seen:
    """What is seen while `clients` send `content`."""
    seen = Seen()
    small = body(1, b"[1,2,3,4]", 1, b'["a"]')
    work = [threading.Thread(target=seen.ask, args=(path, server.management, path, None)) for path in PROBES]
    work.append(threading.Thread(target=seen.ask, args=("small", server.port, "/v2/models/probes/infer", small)))
    if content is not None:
        work += [threading.Thread(target=seen.load, args=(server.port, content)) for _ in range(clients)]
    for thread in work:
        thread.start()
    time.sleep(seconds)
    seen.over.set()
    for thread in work:
        thread.join()
    return seen


def peak_mib(server: ServerProcess) -> int:
    """The most memory that the process has taken."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Worst latency of probes while large bodies are decoded.")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--mib", type=float, default=63)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sha256 = publish(open_store(root / "store"), saved(model(), root), SIGNATURE)
        print(
            "| bodies | answers | healthz | readyz | window | small request | peak MiB |\n|---|---|---|---|---|---|---|"
        )
        loads: dict[str, bytes | None] = {"none": None, **bodies(int(options.mib * (1 << 20)))}
        for number, (name, content) in enumerate(loads.items()):
            served = root / f"model{number}"
            server = ServerProcess(root / "store", sha256, served, log=subprocess.DEVNULL, model="probes", **ROOM)
            try:
                seen = measure(server, content, options.clients, options.seconds)
                answers = json.dumps(dict(seen.answered)).strip("{}").replace('"', "")
                worst = " | ".join(f"{seen.worst[each]:.0f}" for each in (*PROBES, "small"))
                print(f"| {name} | {answers} | {worst} | {peak_mib(server)} |", flush=True)
            finally:
                server.stop()


if __name__ == "__main__":
    main()
