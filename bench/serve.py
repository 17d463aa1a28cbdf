"""Fettle's server beside its peers: `python -m bench.serve [--only MODEL …] [--server SERVER …] [--seconds 10] [--rounds 3]`.

For each model of `bench/serve_models.py` every server of `bench/serve_servers.py` is started, on CPUs of its own; the load comes from others
(wrk, vegeta and ghz, `bench/serve_load.py`). One server at a time is asked, the others are quiet; all of them in turns, in each round in another
order, so that what else the machine does falls on all alike. Closed loops with 1, 16 and 64 connections, then an open loop at half of what Fettle
answered to 16. Fettle runs as in a pod: everything is checked, counted, bounded, kept in windows and sampled.

Prints the table and writes bench/results/serve.json; rows of other models and servers stay. A server that cannot be had is a row that says why.
Peers' environments are installed below .cache when they are first needed. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bench.peers.environments import ROOT
from bench.serve_load import Figures, LoadFailure, closed, opened
from bench.serve_models import BY_NAME as CASES
from bench.serve_models import ServedCase, written
from bench.serve_rows import CLOSED, OPEN, Row, figures, merged, read, table, write
from bench.serve_servers import ALONE, FETTLE, JSON, PROTOCOLS, RunningServer, ServerFailure, ServerKind, alone
from bench.serve_servers import BY_NAME as SERVERS
from rich.console import Console

from fettle.runtimes import cpu

RESULTS = Path(__file__).parent / "results" / "serve.json"
WORK = ROOT / ".cache" / "bench-serve"
CONCURRENCY = (1, 16, 64)
OPEN_SHARE = 0.5  # of what Fettle answers to 16 connections
WARM_SECONDS = 1.0
QUEUES = 3  # that a turn lasts for at least: a shorter closed loop would mostly show its beginning and its end


@dataclass(frozen=True)
class Plan:
    """How it is measured."""

    work: Path
    seconds: float
    rounds: int
    concurrency: tuple[int, ...]
    protocols: tuple[str, ...]
    open_loop: bool
    threads: int
    server_cpus: tuple[int, ...]
    load_cpus: tuple[int, ...]


def one_case(case: ServedCase, kinds: Sequence[ServerKind], plan: Plan) -> Iterator[Row]:
    """All servers on one model."""
    model = written(case, plan.work)
    machine = f"{cpu.detect().label}, server on {len(plan.server_cpus)} of {os.cpu_count()} cores"
    empty = Row("", "", case.name, CLOSED, None, None, machine, datetime.now(UTC).isoformat(timespec="seconds"))
    runtime = runtime_alone(replace(empty, server=ALONE, protocol="none", concurrency=1), case, model, plan)
    yield runtime
    servers: dict[str, RunningServer] = {}
    try:
        for kind in kinds:
            say(f"{case.name}: starting {kind.name}")
            folder = (plan.work / "runs" / case.name / kind.name.replace(" ", "-")).resolve()
            try:
                servers[kind.name] = RunningServer(kind, case, model, folder, plan.threads, plan.server_cpus)
            except ServerFailure as failure:
                say(f"  {failure}")
                yield replace(empty, server=kind.name, protocol=JSON, error=str(failure))
        for protocol in plan.protocols:
            yield from one_protocol(
                replace(empty, protocol=protocol), servers, plan, 1 / (runtime.requests_per_second or 1e9)
            )
    finally:
        for server in servers.values():
            server.stop()


def one_protocol(empty: Row, servers: dict[str, RunningServer], plan: Plan, run_seconds: float) -> Iterator[Row]:
    """All loads in one protocol on all servers that speak it. `run_seconds`: what the model takes without a server."""
    able = {}
    for name, server in servers.items():
        try:
            server.request(empty.protocol)
            able[name] = server
        except ServerFailure as failure:
            if empty.protocol in server.kind.protocols:  # others were never said to speak it
                yield replace(empty, server=name, error=str(failure))
    rate = None
    takes = dict.fromkeys(able, run_seconds)  # a request
    for concurrency in plan.concurrency if able else ():
        seconds = {name: max(plan.seconds, QUEUES * concurrency * takes[name]) for name in able}
        rows = list(one_load(replace(empty, concurrency=concurrency), able, seconds, plan))
        yield from rows
        rates = {row.server: row.requests_per_second for row in rows if row.requests_per_second}
        takes |= {name: 1 / found for name, found in rates.items()}
        if concurrency == 16:
            rate = rates.get(FETTLE)
    if rate and plan.open_loop:
        row = replace(empty, loop=OPEN, rate=max(1.0, round(OPEN_SHARE * rate)))
        yield from one_load(row, able, dict.fromkeys(able, plan.seconds), plan)


def one_load(empty: Row, servers: dict[str, RunningServer], seconds: dict[str, float], plan: Plan) -> Iterator[Row]:
    """Ask all servers in turns. `seconds`: of a server's turn."""
    load = f"c={empty.concurrency}" if empty.loop == CLOSED else f"{empty.rate:g}/s"
    seen: dict[str, list[Figures]] = {name: [] for name in servers}
    failures: dict[str, str] = {}
    for number in range(plan.rounds):
        for name in random.Random(number).sample(list(servers), len(servers)):
            if name in failures:
                continue
            try:
                if not number:
                    asked(empty, servers[name], WARM_SECONDS, plan)
                    servers[name].settle()
                before = servers[name].cpu_seconds()
                found = asked(empty, servers[name], seconds[name], plan)
                spent = (servers[name].cpu_seconds() - before) / max(1.0, found.requests_per_second * seconds[name])
                servers[name].settle()
                seen[name].append(found)
                rest = f"p99 {found.p99_milliseconds:.2f} ms, {1e6 * spent:.0f} µs of CPU each, {found.failed} failed"
                say(f"{empty.model}, {empty.protocol}, {load}: {name} {found.requests_per_second:,.0f}/s, {rest}")
            except (LoadFailure, ServerFailure) as failure:
                failures[name] = str(failure)
                say(f"{empty.model}, {empty.protocol}, {load}: {name}: {failure}")
    for name, server in servers.items():
        row = replace(empty, server=name)
        if name in failures:
            yield replace(row, error=failures[name])
        else:
            yield replace(row, **figures(seen[name], server.memory_bytes()))


def asked(row: Row, server: RunningServer, seconds: float, plan: Plan) -> Figures:
    """One turn of a server. Raises LoadFailure, ServerFailure."""
    request = server.request(row.protocol)
    if row.rate is not None:
        found = opened(request, row.rate, seconds, plan.load_cpus, server.folder)
    else:
        found = closed(request, row.concurrency or 1, seconds, plan.load_cpus, server.folder)
    if seconds > WARM_SECONDS and not found.requests_per_second + found.failed:
        raise LoadFailure(f"no answer within {seconds:.0f} s")
    return found


def runtime_alone(row: Row, case: ServedCase, model: Path, plan: Plan) -> Row:
    """What the runtime does without a server."""
    folder = (plan.work / "runs" / case.name / "alone").resolve()
    try:
        found = alone(case, model, folder, plan.threads, plan.server_cpus, plan.seconds)
    except ServerFailure as failure:
        return replace(row, error=str(failure))
    say(f"{case.name}: {ALONE} {found['requestsPerSecond']:,.0f}/s")
    late = Figures(found["requestsPerSecond"], found["p50Milliseconds"], found["p99Milliseconds"], 0)
    return replace(row, **figures([late], None))


def say(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


def split_cpus() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """CPUs of the server and of the load: half and half."""
    known = tuple(sorted(os.sched_getaffinity(0)))
    half = len(known) // 2
    return (known[:half], known[half:]) if half else (known, known)


def cpus(text: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    return tuple(int(number) for number in text.split(","))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    server_cpus, load_cpus = split_cpus()
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=CASES, help="models; all when none is given")
    parser.add_argument(
        "--server", nargs="+", metavar="SERVER", choices=SERVERS, help="servers; all when none is given"
    )
    parser.add_argument("--protocol", nargs="+", metavar="PROTOCOL", choices=PROTOCOLS, default=PROTOCOLS)
    parser.add_argument("--concurrency", nargs="+", type=int, default=CONCURRENCY, help="connections of closed loops")
    parser.add_argument("--seconds", type=float, default=10, help="of each turn of a server")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server under each load")
    parser.add_argument("--no-open-loop", action="store_true", help="leave the open loop out")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime, in every server")
    parser.add_argument("--server-cpus", type=cpus, default=server_cpus, help="such as 0,1")
    parser.add_argument("--load-cpus", type=cpus, default=load_cpus, help="such as 2,3")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for models, logs and tools")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that rows are written into")
    return parser.parse_args()


def main() -> None:
    """Run the models, one after the other; the results are written after each."""
    options = arguments()
    logging.disable(logging.INFO)
    plan = Plan(
        options.work, options.seconds, options.rounds, tuple(options.concurrency), tuple(options.protocol),
        not options.no_open_loop, options.threads, options.server_cpus, options.load_cpus,
    )  # fmt: skip
    rows: list[Row] = []
    for case in (CASES[name] for name in options.only or CASES):
        rows += one_case(case, [SERVERS[name] for name in options.server or SERVERS], plan)
        write(options.results, merged(read(options.results), rows))
    Console(width=180).print(table(rows, FETTLE))


if __name__ == "__main__":
    main()
