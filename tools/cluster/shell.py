"""Running commands, waiting, and telling the user what goes on."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from tools.cluster.errors import ClusterError
from tools.cluster.paths import DEBIAN_PATH

# buildah's own lines, behind what a step of a Dockerfile said
_FAILED_STEP = ("Error: building at STEP", "subprocess exited with status")


def tool_path() -> str:
    """PATH with the system's folders in it: a user's shell often lacks /usr/sbin."""
    return f"{os.environ.get('PATH', '')}:{DEBIAN_PATH}".lstrip(":")


def attempt(
    *command: str | Path,
    input_bytes: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command, whatever becomes of it."""
    environment = {**os.environ, "PATH": tool_path(), **(env or {})}
    arguments = [str(part) for part in command]
    try:
        return subprocess.run(arguments, input=input_bytes, capture_output=True, env=environment, cwd=cwd, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(arguments, 127, b"", f"{arguments[0]} is not installed".encode())


def run(
    *command: str | Path,
    input_bytes: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command that has to work; its output. Raises ClusterError with its last line of complaint."""
    result = attempt(*command, input_bytes=input_bytes, env=env, cwd=cwd)
    if result.returncode:
        raise ClusterError(f"{' '.join(map(str, command))[:160]}: {complaint(result)}")
    return result.stdout.decode(errors="replace")


def run_logged(log: Path, *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a long command with its output appended to a log. Raises ClusterError with the log's last line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [str(part) for part in command]
    with log.open("ab") as output:
        environment = {**os.environ, "PATH": tool_path(), **(env or {})}
        try:
            status = subprocess.run(
                arguments, stdout=output, stderr=output, cwd=cwd, env=environment, check=False
            ).returncode
        except FileNotFoundError as error:
            raise ClusterError(f"{arguments[0]} is not installed") from error
    if status:
        raise ClusterError(f"{Path(arguments[0]).name}: {last_line(log)} (full log: {log})")


def complaint(result: subprocess.CompletedProcess[bytes]) -> str:
    """The last line that a failed command wrote."""
    text = (result.stderr or result.stdout or b"").decode(errors="replace").strip()
    return text.splitlines()[-1].strip() if text else f"exit code {result.returncode}"


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.1) -> bool:
    """Whether the condition came true within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def megabytes(folder: Path) -> int:
    """What a folder takes of its disk; 0 where there is none."""
    used = attempt("du", "-sxm", folder).stdout.split()
    return int(used[0]) if used else 0


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, and that tells more than that a step of a build failed."""
    try:
        lines = log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    telling = [line for line in lines if line.strip() and not line.startswith(_FAILED_STEP)]
    return (telling or lines or [""])[-1].strip()[:300]


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file whole or not at all, in a folder that need not exist. Several may write one file at once: the last one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


class Progress:
    """Lines with the seconds since the start, and what they are about where that was said."""

    def __init__(self, about: str = "", *, stderr: bool = False) -> None:
        self._start = time.monotonic()
        self._stderr = stderr
        self._about = f"{about}: " if about else ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def __call__(self, text: str) -> None:
        click.echo(click.style(f"{self.seconds:6.1f} s  ", dim=True) + self._about + text, err=self._stderr)
