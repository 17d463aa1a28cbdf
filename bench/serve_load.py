"""Load on a server: closed loop over HTTP by wrk, open loop by vegeta, both over gRPC by ghz. All three are others' work, written in C and Go, so
that the generator is not what is measured.

wrk comes from Debian's package, unpacked below .cache without being installed; vegeta and ghz are built from their Go modules there.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.environments import ROOT, last_words

TOOLS = ROOT / ".cache" / "bench-serve" / "tools"
GO_MODULES = {
    "vegeta": "github.com/tsenart/vegeta/v12@v12.13.0",
    "ghz": "github.com/bojand/ghz/cmd/ghz@v0.121.0",
}
WRK_PACKAGES = ("wrk", "libluajit-5.1-2", "libluajit-5.1-common")


class LoadFailure(Exception):
    """A generator cannot be had, or said nothing of use; the message says why."""


@dataclass(frozen=True)
class Request:
    """What is sent again and again. `call`: a gRPC method in place of a path, with `proto`, the file that describes it."""

    url: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    call: str = ""
    proto: Path | None = None


@dataclass(frozen=True)
class Figures:
    """What was seen. `failed`: requests without an answer of success."""

    requests_per_second: float
    p50_milliseconds: float
    p99_milliseconds: float
    failed: int


def closed(request: Request, concurrency: int, seconds: float, cpus: Sequence[int], folder: Path) -> Figures:
    """`concurrency` connections, each of which sends its next request when it has its answer. Raises LoadFailure."""
    if request.call:
        return _ghz(request, ["--concurrency", str(concurrency)], seconds, cpus, folder, connections=concurrency)
    return _wrk(request, concurrency, seconds, cpus, folder)


def opened(request: Request, rate: float, seconds: float, cpus: Sequence[int], folder: Path) -> Figures:
    """`rate` requests a second, whether the server answers or not. Raises LoadFailure."""
    if request.call:
        told = ["--rps", str(max(1, round(rate))), "--async", "--concurrency", "64"]
        return _ghz(request, told, seconds, cpus, folder, connections=16)
    return _vegeta(request, rate, seconds, cpus, folder)


# ----------------------------------------------------------------------------------------------------------------------- wrk

_SCRIPT = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "failed": %d}}\\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99), e.status + e.connect + e.read + e.write + e.timeout))
end
"""


def _wrk(request: Request, concurrency: int, seconds: float, cpus: Sequence[int], folder: Path) -> Figures:
    program, environment = _wrk_program()
    body, script = folder / "body", folder / "wrk.lua"
    body.write_bytes(request.body)
    headers = {"Content-Type": "application/json", **request.headers}
    lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
    script.write_text(_SCRIPT.format(body=body, headers=lines))
    threads = min(len(cpus), concurrency)
    words = [str(program), f"-t{threads}", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    said = _run([*words, "-s", str(script), request.url], cpus, environment)
    found = json.loads(next(line for line in reversed(said.splitlines()) if line.startswith("{")))
    rate = 1e6 * (found["requests"] - found["failed"]) / max(1, found["microseconds"])
    return Figures(rate, found["p50"] / 1000, found["p99"] / 1000, found["failed"])


def _wrk_program() -> tuple[Path, dict[str, str]]:
    """wrk, and the environment that it runs in."""
    found = shutil.which("wrk")
    if found is not None:
        return Path(found), dict(os.environ)
    folder = TOOLS / "wrk"
    program = folder / "usr" / "bin" / "wrk"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _command(["apt-get", "download", *WRK_PACKAGES], folder, "wrk cannot be downloaded")
        for package in folder.glob("*.deb"):
            _command(["dpkg-deb", "--extract", package, folder], folder, "wrk cannot be unpacked")
    libraries = ":".join(str(path) for path in (folder / "usr" / "lib").glob("*-linux-gnu*"))
    return program, {**os.environ, "LD_LIBRARY_PATH": libraries}


# ------------------------------------------------------------------------------------------------------------ vegeta and ghz


def _vegeta(request: Request, rate: float, seconds: float, cpus: Sequence[int], folder: Path) -> Figures:
    target = {
        "method": "POST",
        "url": request.url,
        "body": base64.b64encode(request.body).decode(),
        "header": {"Content-Type": ["application/json"], **{name: [value] for name, value in request.headers.items()}},
    }
    # Vegeta takes no target from a last line without its end.
    (folder / "target.json").write_text(json.dumps(target) + "\n")
    program, results = _go("vegeta"), folder / "vegeta.bin"
    words = [
        str(program),
        "attack",
        "-format=json",
        f"-targets={folder / 'target.json'}",
        f"-output={results}",
        "-timeout=30s",
    ]
    words += [f"-rate={max(1, round(rate))}/s", f"-duration={seconds:g}s", "-max-workers=256", "-max-body=0"]
    _run(words, cpus, dict(os.environ))
    found = json.loads(_run([program, "report", "-type=json", results], cpus, dict(os.environ)))
    latencies = found["latencies"]
    failed = found["requests"] - round(found["success"] * found["requests"])
    return Figures(found["throughput"], latencies["50th"] / 1e6, latencies["99th"] / 1e6, failed)


def _ghz(
    request: Request, load: list[str], seconds: float, cpus: Sequence[int], folder: Path, *, connections: int
) -> Figures:
    body = folder / "grpc.bin"
    body.write_bytes(request.body)
    words: list[str | Path] = [_go("ghz"), "--insecure", "--call", request.call, "--binary-file", body]
    if request.proto is not None:
        words += ["--proto", request.proto]
    words += [*load, "--connections", str(connections), "--duration", f"{seconds:g}s", "--duration-stop", "wait"]
    said = _run([*words, "--cpus", str(len(cpus)), "--format", "json", request.url], cpus, dict(os.environ))
    return _ghz_figures(json.loads(said))


def _ghz_figures(found: dict[str, Any]) -> Figures:
    codes = found.get("statusCodeDistribution") or {}
    answered = codes.get("OK", 0)
    late = {row["percentage"]: row["latency"] / 1e6 for row in found.get("latencyDistribution") or ()}
    if not answered:
        raise LoadFailure(f"no answer of success: {json.dumps(found.get('errorDistribution') or codes)[:200]}")
    return Figures(answered / (found["total"] / 1e9), late.get(50, 0.0), late.get(99, 0.0), found["count"] - answered)


def _go(name: str) -> Path:
    """A program of a Go module, built once."""
    folder = TOOLS / "go"
    program = folder / name
    if not program.exists():
        go = shutil.which("go") or "/usr/local/go/bin/go"
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "GOBIN": str(folder), "GOFLAGS": "-buildvcs=false -trimpath"}
        _command([go, "install", GO_MODULES[name]], folder, f"{name} cannot be built", environment)
    return program


def _run(words: Sequence[str | Path], cpus: Sequence[int], environment: dict[str, str]) -> str:
    """What a generator prints, run on `cpus`."""
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cpus)), *words]
    done = subprocess.run(pinned, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise LoadFailure(f"{Path(words[0]).name} ended with {done.returncode}: {last_words(done)}")
    return done.stdout


def _command(words: Sequence[str | Path], folder: Path, what: str, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=folder, env=environment)
    except OSError as error:
        raise LoadFailure(f"{what}: {error}") from error
    if done.returncode:
        raise LoadFailure(f"{what}: {last_words(done)}")
