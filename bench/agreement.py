"""What comparing answers on live inputs costs a server, and how long a decision takes. Real server processes, the digits models.

    python -m bench.agreement [--rounds 5] [--seconds 4]

Cost: three servers of one artifact take turns, in a random order each round: without samples, with samples, and with samples as a
canary that replays another server's. Closed loop (as many requests as it can answer) and a fixed rate of a third of that,
because a server without a pause between requests replays nothing. Decision: `better` and `wrong` as canaries of `first`, until
`plan/rollout/metrics/agreement.py` calls a window good or bad. Prints two tables in Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import subprocess
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
from tools.serving import ServerProcess, open_store, publish

from fettle.api.modeldeployment_status import Verdict
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import AgreementMode, RuntimeName
from fettle.optimizer.measure.sureness import Sureness
from fettle.plan.rollout.metrics.agreement import agreement
from fettle.plan.rollout.window_totals import Comparisons
from fettle.runtimes import base, cpu
from fettle.store.comparison import Comparison
from fettle.store.store import Store

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


def published(store: Store, name: str, folder: Path) -> str:
    """An artifact of a digits model as it is, in float32 on onnxruntime; its digest."""
    source = folder / name
    source.mkdir()
    shutil.copy(DIGITS / name / "model.onnx", source)
    rule = Comparison(mode=AgreementMode.TOP_ONE, margin=sure_margin(name) if name == "first" else 0.0)
    return publish(store, source / "model.onnx", SIGNATURE, comparisons={"logits": rule})


def outcomes(server: ServerProcess) -> tuple[Comparisons, int]:
    """What a server compared so far, and the answers it gave."""
    window = httpx.get(f"{server.admin}/fettle/window?since=0").json()
    counted = sum((Counter(second["outcomes"]) for second in window["windows"]), Counter[str]())
    return Comparisons(**counted), sum(second["requests"] for second in window["windows"])


@contextmanager
def serving(
    folder: Path, sha256: str, revision: str, samples: int, stable: ServerProcess | None = None
) -> Iterator[ServerProcess]:
    """A server of the artifact; with `stable` it replays that one's samples."""
    token = folder / "token"
    token.write_text("bench")
    server = ServerProcess(
        folder / "store",
        sha256,
        Path(tempfile.mkdtemp(dir=folder)) / "model",
        log=subprocess.DEVNULL,
        model="digits",
        revision=revision,
        connection_max_requests=1_000_000,
        connection_max_seconds=1_000_000,
        samples=samples,
        samples_token=token,
        stable=f"127.0.0.1:{stable.management}" if stable is not None else "",
    )
    try:
        yield server
    finally:
        server.stop()


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
        connection = Connection("127.0.0.1", "127.0.0.1", port)
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


async def beside(stable: ServerProcess, requests: list[bytes], work: Any) -> Any:
    """`work`, while the stable server gets its requests."""
    trickle = asyncio.create_task(send(stable.port, requests, 1e9, SAMPLED_RATE, clients=2))
    try:
        return await work
    finally:
        trickle.cancel()
        with suppress(asyncio.CancelledError):
            await trickle


async def cost(
    servers: dict[str, ServerProcess], stable: ServerProcess, requests: list[bytes], rounds: int, seconds: float
) -> None:
    """The first table."""
    saturated: dict[str, list[float]] = defaultdict(list)
    paced: dict[str, list[float]] = defaultdict(list)
    first = await send(next(iter(servers.values())).port, requests, seconds, None)
    rate = first.rate / 3
    before = outcomes(servers["canary that replays"])[0]
    began = time.perf_counter()
    for _ in range(rounds):
        for name in random.sample(list(servers), len(servers)):
            saturated[name].append((await send(servers[name].port, requests, seconds, None)).rate)
            paced[name] += (await send(servers[name].port, requests, seconds, rate)).milliseconds
    done = outcomes(servers["canary that replays"])[0]
    replays = done.compared + done.unsure - before.compared - before.unsure
    print(f"{rounds} rounds of {seconds:g} s; the fixed rate is {rate:.0f} requests/s; ", end="")
    print(f"{replays / (time.perf_counter() - began):.1f} items/s replayed over the whole run\n")
    print("| server | requests/s, closed loop (median of rounds) | p50 ms | p99 ms at the fixed rate |")
    print("|---|---|---|---|")
    for name in servers:
        p50, p99 = np.percentile(paced[name], [50, 99])
        print(f"| {name} | {statistics.median(saturated[name]):.0f} | {p50:.2f} | {p99:.2f} |")


async def decision(canary: ServerProcess) -> tuple[Verdict, Comparisons, float, str]:
    """Until the analysis knows, asking once a second as its windows end."""
    began = time.perf_counter()
    while True:
        await asyncio.sleep(1)
        counted, _ = outcomes(canary)
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
        store = open_store(folder / "store")
        sha256 = {model: published(store, model, folder) for model in ("first", "better", "wrong")}
        print(f"CPU class: {cpu.detect().label}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
        with serving(folder, sha256["first"], "first", 256) as stable:
            with (
                serving(folder, sha256["first"], "off", 0) as off,
                serving(folder, sha256["first"], "on", 256) as on,
                serving(folder, sha256["first"], "canary", 256, stable) as canary,
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
                with serving(folder, sha256[model], model, 256, stable) as canary:
                    verdict, found, seconds, _ = asyncio.run(beside(stable, requests, decision(canary)))
                print(
                    f"| {model} | {verdict.value} | {found.compared} | {found.unsure} | {found.agreed} | {seconds:.0f} |"
                )


if __name__ == "__main__":
    main()
