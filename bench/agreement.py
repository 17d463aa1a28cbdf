"""What comparing answers on live inputs costs a server, and how long a decision takes. Real server processes, the digits models.

    python bench/agreement.py [--rounds 5] [--seconds 4]

Cost: three servers of one artifact take turns, in a random order each round: without samples, with samples, and with samples as a
canary that replays another server's. Closed loop (as many requests as it can answer) and a fixed rate of a third of that,
because a server without a pause between requests replays nothing. Decision: `better` and `wrong` as canaries of `first`, until
`plan.analysis.agreement` calls a window good or bad. Prints two tables in Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tools.demo.load import Connection
from tools.demo.traffic import bodies

from fettle.api.modeldeployment_status import Verdict
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import AgreementMode, RuntimeName
from fettle.optimizer.measure.sureness import Sureness
from fettle.plan.analysis import Comparisons, agreement
from fettle.runtimes import base, cpu
from fettle.store.comparison import Comparison
from fettle.store.manifest import DataRecord, Manifest, RecipeRecord, write_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
SIGNATURE = Signature(
    inputs=(Tensor(name="image", dtype="FP32", shape=(-1, 1, 32, 32), batch_axis=0),),
    outputs=(Tensor(name="logits", dtype="FP32", shape=(-1, 10), batch_axis=0),),
)
ONE = RuntimeSettings(threads=1)
CLIENTS = 4
SAMPLED_RATE = 32.0  # requests a second to the server whose samples are replayed
MINIMUM = 0.95


def sure_margin(name: str) -> float:
    """From which margin on the model's decisions are sure, as the measuring Job finds it."""
    session = base.get(RuntimeName.ONNXRUNTIME).load(DIGITS / name / "model.onnx", ONE, SIGNATURE)
    found = Sureness({"logits": Comparison(mode=AgreementMode.TOP_ONE)})
    with np.load(DIGITS / "evaluation.npz") as data:
        images, labels = data["image"], data["labels"]
    for start in range(0, len(images), 32):
        for row, label in zip(
            session.infer({"image": images[start : start + 32]})["logits"], labels[start:], strict=False
        ):
            found.add({"logits": row}, {"logits": np.array([label])})
    session.close()
    return found.margins()["logits"]


def publish(store: Store, name: str, folder: Path) -> str:
    """An artifact of a digits model as it is, in float32 on onnxruntime; its digest."""
    source = folder / name
    source.mkdir()
    shutil.copy(DIGITS / name / "model.onnx", source)
    rule = Comparison(mode=AgreementMode.TOP_ONE, margin=sure_margin(name) if name == "first" else 0.0)
    manifest = Manifest(
        source_sha256="0" * 64,
        recipe=RecipeRecord(name="portable"),
        data=DataRecord(),
        libraries={},
        runtime=RuntimeName.ONNXRUNTIME,
        settings=ONE,
        signature=SIGNATURE,
        tolerances={},
        comparisons={"logits": rule},
        model=store.put_model(source, "model.onnx"),
    )
    return write_artifact(store, manifest)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A running server process."""

    process: subprocess.Popen[bytes]
    port: int
    management: int

    def outcomes(self) -> tuple[Comparisons, int]:
        """What it compared so far, and the answers it gave."""
        window = httpx.get(f"http://127.0.0.1:{self.management}/fettle/window?since=0").json()
        counted = sum((Counter(second["outcomes"]) for second in window["windows"]), Counter[str]())
        return Comparisons(**counted), sum(second["requests"] for second in window["windows"])


@contextmanager
def server(folder: Path, sha256: str, revision: str, samples: int, stable: Server | None = None) -> Iterator[Server]:
    """A server of the artifact; with `stable` it replays that one's samples."""
    port, management = free_port(), free_port()
    (folder / "token").write_text("bench")
    told = {
        "ARTIFACT": f"pvc://store/artifacts/{sha256}",
        "SHA256": sha256,
        "FOLDER": folder / f"model-{port}",
        "MODEL": "digits",
        "REVISION": revision,
        "HOST": "127.0.0.1",
        "PORT": port,
        "MANAGEMENT_PORT": management,
        "DRAIN_SECONDS": 0,
        "CONNECTION_MAX_REQUESTS": 1_000_000,
        "CONNECTION_MAX_SECONDS": 1_000_000,
        "SAMPLES": samples,
        "SAMPLES_TOKEN": folder / "token",
        "STABLE": f"127.0.0.1:{stable.management}" if stable is not None else "",
    }
    environment = os.environ | {f"FETTLE_SERVER_{key}": str(value) for key, value in told.items()}
    environment["FETTLE_MOUNTS"] = json.dumps({"store": str(folder / "store")})
    command = [sys.executable, "-m", "fettle.server"]
    subprocess.run([*command, "fetch"], env=environment, check=True, stderr=subprocess.DEVNULL)
    process = subprocess.Popen([*command, "serve"], env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{management}/readyz").status_code == 200:
                    break
            time.sleep(0.05)
        else:
            raise SystemExit("a server did not get ready in 60 s")
        yield Server(process, port, management)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@dataclass(frozen=True)
class Load:
    """What a block of load saw: answers a second, and each answer's milliseconds."""

    rate: float
    milliseconds: list[float]


async def send(port: int, requests: list[bytes], seconds: float, rate: float | None, clients: int = CLIENTS) -> Load:
    """`clients` users on keep-alive connections for `seconds`; as fast as it goes, or `rate` a second in all."""
    took: list[float] = []
    began = time.perf_counter()

    async def user(number: int) -> None:
        connection = Connection("127.0.0.1", port)
        rng = random.Random(number)
        due = time.perf_counter() + (rng.random() * clients / rate if rate else 0)
        while time.perf_counter() - began < seconds:
            if rate:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                due += rng.expovariate(rate / clients)
            started = time.perf_counter()
            status, _, _ = await connection.request("/v2/models/digits/infer", rng.choice(requests), True)
            took.append((time.perf_counter() - started) * 1000)
            if status != 200:
                raise SystemExit(f"the server answered {status}")
        await connection.close()

    await asyncio.gather(*(user(number) for number in range(clients)))
    return Load(len(took) / (time.perf_counter() - began), took)


async def beside(stable: Server, requests: list[bytes], work: Any) -> Any:
    """`work`, while the stable server gets its requests."""
    trickle = asyncio.create_task(send(stable.port, requests, 1e9, SAMPLED_RATE, clients=2))
    try:
        return await work
    finally:
        trickle.cancel()
        with suppress(asyncio.CancelledError):
            await trickle


async def cost(servers: dict[str, Server], stable: Server, requests: list[bytes], rounds: int, seconds: float) -> None:
    """The first table."""
    saturated: dict[str, list[float]] = defaultdict(list)
    paced: dict[str, list[float]] = defaultdict(list)
    first = await send(next(iter(servers.values())).port, requests, seconds, None)
    rate = first.rate / 3
    before = servers["canary that replays"].outcomes()[0]
    began = time.perf_counter()
    for _ in range(rounds):
        for name in random.sample(list(servers), len(servers)):
            saturated[name].append((await send(servers[name].port, requests, seconds, None)).rate)
            paced[name] += (await send(servers[name].port, requests, seconds, rate)).milliseconds
    done = servers["canary that replays"].outcomes()[0]
    replays = done.compared + done.unsure - before.compared - before.unsure
    print(f"{rounds} rounds of {seconds:g} s; the fixed rate is {rate:.0f} requests/s; ", end="")
    print(f"{replays / (time.perf_counter() - began):.1f} items/s replayed over the whole run\n")
    print("| server | requests/s, closed loop (median of rounds) | p50 ms | p99 ms at the fixed rate |")
    print("|---|---|---|---|")
    for name in servers:
        p50, p99 = np.percentile(paced[name], [50, 99])
        print(f"| {name} | {statistics.median(saturated[name]):.0f} | {p50:.2f} | {p99:.2f} |")


async def decision(canary: Server) -> tuple[Verdict, Comparisons, float, str]:
    """Until the analysis knows, asking once a second as its windows end."""
    began = time.perf_counter()
    while True:
        await asyncio.sleep(1)
        counted, _ = canary.outcomes()
        said = agreement(MINIMUM, 50, counted, ())
        seconds = time.perf_counter() - began
        if said.verdict in (Verdict.GOOD, Verdict.BAD) or seconds > 120:
            return said.verdict, counted, seconds, said.message


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each block of load")
    options = parser.parse_args()
    requests = [one.encode() for one in bodies(DIGITS / "evaluation.npz", 200, seed=1)[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "store").mkdir()
        store = Store.open("pvc://store", Mounts({"store": folder / "store"}))
        sha256 = {model: publish(store, model, folder) for model in ("first", "better", "wrong")}
        print(f"CPU class: {cpu.detect().label}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
        with server(folder, sha256["first"], "first", 256) as stable:
            with (
                server(folder, sha256["first"], "off", 0) as off,
                server(folder, sha256["first"], "on", 256) as on,
                server(folder, sha256["first"], "canary", 256, stable) as canary,
            ):
                servers = {"no samples": off, "samples": on, "canary that replays": canary}
                work = cost(servers, stable, requests, options.rounds, options.seconds)
                asyncio.run(beside(stable, requests, work))
            print(
                f"\nDecisions at agreement {MINIMUM:g}, stable `first`, {SAMPLED_RATE:g} requests/s to it, no other load on the canary\n"
            )
            print("| canary | verdict | items compared | unsure | agreed | seconds |")
            print("|---|---|---|---|---|---|")
            for model in ("better", "wrong"):
                with server(folder, sha256[model], model, 256, stable) as canary:
                    verdict, found, seconds, _ = asyncio.run(beside(stable, requests, decision(canary)))
                print(
                    f"| {model} | {verdict.value} | {found.compared} | {found.unsure} | {found.agreed} | {seconds:.0f} |"
                )


if __name__ == "__main__":
    main()
