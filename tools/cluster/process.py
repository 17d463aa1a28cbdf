"""Daemons: started once, found again by pid AND start time, ended without touching anybody else's process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.cluster.shell import tool_path, write

LOG_LIMIT = 20 * 1024 * 1024
# Neither a proxy nor somebody's Kubernetes settings may reach a component.
_KEPT_ENVIRONMENT = ("HOME", "LANG", "TZ", "TMPDIR")
_children: list[subprocess.Popen[bytes]] = []  # so that none is collected, and complained of, while it runs


@dataclass(frozen=True)
class Record:
    """A daemon that was started; pids come back, a pid with its start time and boot does not."""

    name: str
    pid: int
    started: int
    boot: str
    fingerprint: str


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def alive(record: Record) -> bool:
    return record.boot == boot_id() and start_time(record.pid) == record.started


def records(pids: Path) -> dict[str, Record]:
    """Every daemon that was started and not stopped, dead ones too, by the files in `pids`."""
    found = {}
    for file in sorted(pids.glob("*.json")):
        with contextlib.suppress(ValueError, TypeError):  # a crash may have left half a file
            found[file.stem] = Record(**json.loads(file.read_text(encoding="utf-8")))
    return found


def start(pids: Path, name: str, command: Sequence[str], fingerprint: str, log: Path, cwd: Path) -> Record:
    """Start a daemon in a session of its own, its output appended to its log, its record in `pids`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.rename(log.with_suffix(".log.old"))
    environment = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    environment |= {"PATH": tool_path(), "PYTHONPATH": str(cwd), "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
            cwd=cwd,
        )
    _children.append(child)
    record = Record(name, child.pid, start_time(child.pid) or 0, boot_id(), fingerprint)
    write(pids / f"{name}.json", json.dumps(asdict(record)))
    return record


def _open(record: Record) -> int | None:
    """A pidfd of the very process that was started; None when it is gone."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except OSError:
        return None
    if alive(record):  # asked after the pidfd is held, so that the pid cannot change hands in between
        return descriptor
    os.close(descriptor)
    return None


def _ended(descriptor: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(max(0.0, seconds) * 1000))


def stop(daemons: Iterable[Record], grace: float = 5) -> None:
    """TERM to all, KILL to those still there after the grace period; returns when they are gone."""
    held = [(record, descriptor) for record in daemons if (descriptor := _open(record)) is not None]
    for _, descriptor in held:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for _, descriptor in held:
        if not _ended(descriptor, deadline - time.monotonic()):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            _ended(descriptor, 5)
        os.close(descriptor)
