"""Sources prepared one after the other in a process of its own, as each is in a Job's: a library may crash on one.

python -m tests.toolchains.preparing    # a line of JSON on stdin for each task, its termination message on stdout
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.toolchains.damaged import Change, changed, forms

from fettle.api.data import DataSpec
from fettle.api.report import Termination
from fettle.api.source import SourceSpec
from fettle.api.task import PrepareTask
from fettle.optimizer import stage

CLAIM = "claim"
# What a damaged file may end with. One whose weights were changed is a model like any other.
REASONS = {
    "SourceCorrupted",
    "UnsupportedFormat",
    "UnsupportedModel",
    "UnsupportedOperator",
    "UnsupportedOpset",
    "UnsafePickle",
    "UnsafeCode",
    "OutputsInvalid",
    "NumericalMismatch",
    "SourceNotFound",
    "InvalidSpec",
    "DataInvalid",
    "OutOfMemory",
}
# Of these, what is said of what is not a file of the format, or only begins as one.
BROKEN = ("SourceCorrupted", "UnsupportedFormat", "UnsafePickle")
MOST_MEMORY = 6 << 30  # bytes: a size that a damaged file claims must not take the machine down
MOST_SECONDS = 150  # of a CPU: a file on which a library never ends must not keep the tests from ending
NOTHING = ("empty", "header-alone", "cut-at-0.05")  # forms that are none
LIBRARIES = (".ses", "torchinductor_", ".cache", ".config", ".keras")  # what libraries make for themselves begins so
MOST_TEXT = 512  # bytes of a message


@dataclass(frozen=True)
class Whole:
    """A source as its framework saves it, by the paths of its files; which of them is damaged, and how it begins. `source` and `data`: what
    the specs say."""

    files: Mapping[str, bytes] = field(repr=False)
    target: str
    header: bytes
    entry: str | None = None  # the file that is damaged, unless the source is a folder
    source: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def damaged(self, content: bytes) -> Whole:
        """With `content` in the file that is damaged."""
        return replace(self, files={**self.files, self.target: content})


def files_below(folder: Path) -> dict[str, bytes]:
    """What each file of a folder holds, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


Kind = Callable[[Path], Whole]  # saves a source in a folder


class Preparer:
    """`home`: the folder that its process has for everything."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[str] | None = None
        self._saved: dict[Kind, Whole] = {}

    def answer(self, given: Whole) -> Termination:
        """What a Job answers for this source. Fails where it left something behind."""
        claim = self._home / CLAIM
        shutil.rmtree(claim, ignore_errors=True)
        for name, content in given.files.items():
            (claim / name).parent.mkdir(parents=True, exist_ok=True)
            (claim / name).write_bytes(content)
        entry = given.target if given.entry is None else given.entry
        source = SourceSpec(uri=f"pvc://{CLAIM}/{entry}".rstrip("/"), **given.source)
        data = DataSpec(**given.data)
        task = PrepareTask(store=f"pvc://{CLAIM}/store", source=source, data=data, builds=()).model_dump_json()
        said = self._ask(task)
        if said is not None:
            answered = Termination.model_validate_json(said)
            self._assert_empty("temporary")
        else:
            answered = stage.crashed({"FETTLE_TASK": task}, self._ended_by()).termination
        self._assert_empty("work")
        self._assert_empty("home")
        assert {path.name for path in claim.iterdir()} <= {"store", *(Path(name).parts[0] for name in given.files)}
        return answered

    def refused(self, given: Whole) -> Termination:
        """`answer`, which must be a reason that is the file's, and a sentence, unless the file was prepared."""
        answered = self.answer(given)
        if answered.outcome != "Succeeded":
            assert answered.reason in REASONS, f"{answered.reason}: {answered.message}"
            message = answered.message or ""
            assert 20 < len(message.encode()) <= MOST_TEXT and "Traceback" not in message, message
        return answered

    def refuses_forms(self, kind: Kind) -> None:
        """Each of the forms that every format meets is refused with a reason, or is whole enough."""
        whole = self._whole(kind)
        for name, content in forms(whole.files[whole.target], whole.header).items():
            said = self.refused(whole.damaged(content))
            assert name not in NOTHING or said.reason in BROKEN, f"{name}: {said.reason}: {said.message}"

    def refuses_changed(self, kind: Kind, made: Sequence[Change]) -> None:
        """After these changes it is refused with a reason, or is whole enough."""
        whole = self._whole(kind)
        self.refused(whole.damaged(changed(whole.files[whole.target], made, whole.header)))

    def _whole(self, kind: Kind) -> Whole:
        """A source of a kind, made once."""
        if kind not in self._saved:
            folder = self._home / "saved" / kind.__name__
            folder.mkdir(parents=True)
            self._saved[kind] = kind(folder)
        return self._saved[kind]

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _ask(self, task: str) -> str | None:
        """The answer; None where the process died of it."""
        if self._process is None:
            self._process = self._started()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline() or None

    def _started(self) -> subprocess.Popen[str]:
        for name in ("work", "home", "temporary"):
            shutil.rmtree(self._home / name, ignore_errors=True)
            (self._home / name).mkdir(parents=True)
        root = Path(__file__).parents[2]
        places = {"HOME": self._home / "home", "TMPDIR": self._home / "temporary"}
        with (self._home / "log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.toolchains.preparing", str(self._home / CLAIM)],
                cwd=self._home / "work",
                env={
                    **os.environ,
                    **{name: str(place) for name, place in places.items()},
                    "PYTHONPATH": f"{root / 'operator'}{os.pathsep}{root}",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _ended_by(self) -> signal.Signals:
        assert self._process is not None
        self._process.communicate()
        status, self._process = self._process.returncode, None
        assert status < 0, f"the process ended with {status}: {(self._home / 'log').read_text()[-2000:]}"
        assert -status != signal.SIGXCPU, f"it was not done after {MOST_SECONDS} seconds of a CPU"
        return signal.Signals(-status)

    def _assert_empty(self, name: str) -> None:
        left = [path.name for path in (self._home / name).iterdir() if not path.name.startswith(LIBRARIES)]
        assert not left, f"left in the folder {name}: {left}"


def _main(claim: Path) -> None:
    from tests.probed_once import probed_once

    from fettle.store.uris import Mounts

    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))  # as a container's limit
    with os.fdopen(os.dup(1), "w") as out, probed_once():
        os.dup2(2, 1)  # what libraries print goes to the log
        for line in sys.stdin:
            _limit_seconds()
            task = stage.read_task({"FETTLE_TASK": json.loads(line)})
            said = stage.answer(task, Mounts({CLAIM: claim})).termination
            print(said.model_dump_json(), file=out, flush=True)


def _limit_seconds() -> None:
    """The next task has so many, whatever those before it took."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + MOST_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
