"""Requests per second as a pod's cores grow: `python -m bench.serve_cores [--only MODEL] [--cores 1 2] [--seconds 10] [--rounds 3]`.

For each number of cores: one pod with one process, one pod with a process on each core, and as many pods of one core each. They are asked in turns,
in each round in another order. The load (wrk) comes from the cores that no pod uses. Where all of them are used, it takes its share of the servers'
time, so the table also says how many cores the servers had the use of, and how many requests they answered in a second of CPU time.

Prints a table in Markdown. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.serve import WORK, say
from bench.serve_load import Figures, closed
from bench.serve_models import BY_NAME as CASES
from bench.serve_models import ServedCase, written
from bench.serve_servers import FETTLE, JSON, PROTOCOLS, RunningServer, ServerKind

WARM_SECONDS = 1.0
HEAD = (
    "cores", "what runs on them", "load's cores", "connections", "requests/s", "per core", "cores used", "requests per CPU second", "p99 ms",
    "failed", "MiB",
)  # fmt: skip


@dataclass(frozen=True)
class Arrangement:
    """So many pods with so many processes each, on `cpus`. None is pinned to one of them, as a CPU limit does not either."""

    pods: int
    processes: int
    cpus: tuple[int, ...]

    @property
    def name(self) -> str:
        """As the table says it."""
        pods = "1 pod" if self.pods == 1 else f"{self.pods} pods"
        return f"{pods} with {self.processes} process" + ("es" if self.processes > 1 else "")


@dataclass(frozen=True)
class Turn:
    """What was seen in one turn. `cores`: that the servers used."""

    figures: Figures
    cores: float


class Pods:
    """The servers of an arrangement. The load on it comes from `load`."""

    def __init__(
        self, arrangement: Arrangement, case: ServedCase, model: Path, folder: Path, load: Sequence[int]
    ) -> None:
        self.arrangement, self.load = arrangement, load
        kind = ServerKind(FETTLE, protocols=PROTOCOLS, processes=arrangement.processes)
        self.servers = [
            RunningServer(
                kind, case, model, folder / arrangement.name.replace(" ", "-") / str(number), 1, arrangement.cpus
            )
            for number in range(arrangement.pods)
        ]

    def asked(self, concurrency: int, seconds: float) -> Turn:
        """Ask all of them at the same time, with as many generators as there are cores, each over its share of the connections."""
        generators, before = len(self.arrangement.cpus), self._cpu_seconds()
        with ThreadPoolExecutor(generators) as pool:
            asking = []
            for number, server in zip(range(generators), itertools.cycle(self.servers), strict=False):
                folder = server.folder / f"load-{number}"
                folder.mkdir(exist_ok=True)
                told = (server.request(JSON), concurrency // generators, seconds, self.load, folder)
                asking.append(pool.submit(closed, *told))
            found = [each.result() for each in asking]
        rate = sum(each.requests_per_second for each in found)
        latencies = (max(each.p50_milliseconds for each in found), max(each.p99_milliseconds for each in found))
        figures = Figures(rate, *latencies, sum(each.failed for each in found))
        return Turn(figures, (self._cpu_seconds() - before) / seconds)

    def memory_bytes(self) -> int:
        """What all of them take."""
        return sum(server.memory_bytes() for server in self.servers)

    def stop(self) -> None:
        """End them."""
        for server in self.servers:
            server.stop()

    def _cpu_seconds(self) -> float:
        return sum(server.cpu_seconds() for server in self.servers)


def arrangements(cores: int, cpus: Sequence[int]) -> list[Arrangement]:
    """What is compared on so many of `cpus`."""
    own = tuple(cpus[:cores])
    one = [Arrangement(1, 1, own)]
    return one if cores == 1 else [*one, Arrangement(1, cores, own), Arrangement(cores, 1, own)]


def rounds(running: Sequence[Pods], connections: int, count: int, seconds: float) -> dict[str, list[Turn]]:
    """Ask all of them in turns; what was seen, by arrangement."""
    turns: dict[str, list[Turn]] = {pods.arrangement.name: [] for pods in running}
    for number in range(count):
        for pods in random.Random(number).sample(list(running), len(running)):
            if not number:
                pods.asked(connections, WARM_SECONDS)
            turn = pods.asked(connections, seconds)
            turns[pods.arrangement.name].append(turn)
            say(
                f"{pods.arrangement.name}, c={connections}: {turn.figures.requests_per_second:,.0f}/s of {turn.cores:.2f} cores"
            )
    return turns


def row(pods: Pods, turns: Sequence[Turn], cores: int, connections: int) -> str:
    """A line of the table: the best round, because other work on the machine only takes time away; of CPU time the median; and all failures."""
    best = max(turns, key=lambda turn: turn.figures.requests_per_second)
    rate = best.figures.requests_per_second
    of_second = statistics.median(turn.figures.requests_per_second / turn.cores for turn in turns)
    failed = sum(turn.figures.failed for turn in turns)
    cells = (
        f"{cores}", pods.arrangement.name, "its own" if not set(pods.load) & set(pods.arrangement.cpus) else "the same",
        f"{connections}", f"{rate:,.0f}", f"{rate / cores:,.0f}", f"{best.cores:.2f}", f"{of_second:,.0f}",
        f"{best.figures.p99_milliseconds:.1f}", f"{failed}",
        f"{pods.memory_bytes() / 2**20:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    cpus = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=next(iter(CASES)), metavar="MODEL", choices=CASES, help="the model")
    parser.add_argument("--cores", nargs="+", type=int, default=list(range(1, len(cpus) + 1)), help="of the pods")
    parser.add_argument("--concurrency", nargs="+", type=int, default=(16, 64), help="connections")
    parser.add_argument("--seconds", type=float, default=10, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    options = parser.parse_args()
    case = CASES[options.only]
    model, folder = written(case, WORK), (WORK / "cores" / case.name).resolve()
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for cores in options.cores:
        load = cpus[cores:] or cpus
        with contextlib.ExitStack() as stack:
            running = [Pods(each, case, model, folder, load) for each in arrangements(cores, cpus)]
            for pods in running:
                stack.callback(pods.stop)
            for connections in options.concurrency:
                turns = rounds(running, connections, options.rounds, options.seconds)
                for pods in running:
                    print(row(pods, turns[pods.arrangement.name], cores, connections), flush=True)


if __name__ == "__main__":
    main()
