"""Which runtimes load a form, asked once of each, and all in one process: starting one for each takes a second, and some hundred tests
prepare a model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer.prepare import probe, stage


class Asked:
    """A process that loads one model after the other and says of each why it does not load. It ends with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def refusal(self, name: RuntimeName, path: Path, signature: Signature) -> str | None:
        """See `probe.refusal`, which is asked where a model, or one before it, crashed that process."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps([name, str(path), signature.model_dump_json()]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        except BaseException:  # such as the end of a test's time: its answer would be taken for the next one's
            process.kill()
            raise
        if answer:
            refusal: str | None = json.loads(answer)
            return refusal
        process.wait()
        return probe.refusal(name, path, signature)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.probed_once"],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._process


class Remembered:
    """Asks as preparing does, and gives the same answer for the same files."""

    def __init__(self) -> None:
        self._asked = Asked()
        self._known: dict[tuple[object, ...], str | None] = {}

    def refusal(self, name: RuntimeName, path: Path, signature: Signature) -> str | None:
        """See `probe.refusal`."""
        files = sorted(file for file in path.parent.iterdir() if file.is_file())
        digests = tuple((file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files)
        key = (name, path.name, digests, signature.model_dump_json())
        if key not in self._known:
            self._known[key] = self._asked.refusal(name, path, signature)
        return self._known[key]


REMEMBERED = Remembered()


@contextmanager
def probed_once() -> Iterator[None]:
    """Preparing that remembers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "probe", REMEMBERED)
        yield


def answer() -> None:
    """Answer on stdout, line by line, what is asked on stdin. What libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        for line in sys.stdin:
            print(json.dumps(probe.refusal_here(*json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    answer()
