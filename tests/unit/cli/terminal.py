"""A terminal with a process in it: a pseudo terminal, and the screen that a person would see."""

from __future__ import annotations

import codecs
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 60  # seconds: a process that starts on a busy machine is slow, not wrong
UNFINISHED = re.compile(r"\x1b(\[[?\d;]*)?\Z")
TOKEN = re.compile(r"\x1b\[(?P<arguments>[?\d;]*)(?P<command>[A-Za-z])|(?P<text>.)", re.DOTALL)


class Screen:
    """What stands on it, of the sequences that rich writes to draw in place. Any other is an error."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._lines, self._row, self._column, self._rest = [""], 0, 0, ""
        self.cursor_shown = True

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(line.rstrip() for line in self._lines)

    def write(self, data: str) -> None:
        """As the terminal takes it."""
        data = self._rest + data
        cut = UNFINISHED.search(data)
        self._rest = cut[0] if cut else ""
        for found in TOKEN.finditer(data.removesuffix(self._rest)):
            if found["command"]:
                self._obey(found["command"], found["arguments"])
            else:
                self._put(found["text"])

    def _obey(self, command: str, arguments: str) -> None:
        if command == "A":
            self._row = max(0, self._row - int(arguments or 1))
        elif command + arguments == "K2":
            self._lines[self._row] = ""
        elif arguments == "?25":
            self.cursor_shown = command == "h"
        else:
            assert command == "m", f"unknown: {command} {arguments}"

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self._column = 0
        elif letter == "\n":
            self._row += 1
            if self._row == len(self._lines):
                self._lines.append("")
            if self._row == self._height:  # the first line leaves the screen
                del self._lines[0]
                self._row -= 1
        else:
            assert self._column < self._width, f"too wide: {self._lines[self._row]}"
            line = self._lines[self._row].ljust(self._column)
            self._lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
            self._column += 1


class Terminal:
    """A process, and the screen that it writes on."""

    def __init__(self, process: subprocess.Popen[bytes], end: int, screen: Screen) -> None:
        self.process, self.screen, self._end = process, screen, end
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def until(self, holds: Callable[[str], object], seconds: float = PATIENCE) -> str:
        """Take what is written until the screen shows it; returns the screen."""
        until = time.monotonic() + seconds
        while not holds(self.screen.text):
            assert time.monotonic() < until, f"not within {seconds} s, but:\n{self.screen.text}"
            self._read(0.1)
        return self.screen.text

    def ended(self) -> int:
        """The exit status, everything that was written being on the screen."""
        status = self.process.wait(PATIENCE)
        while self._read(0):
            pass
        return status

    def _read(self, seconds: float) -> bool:
        if not select.select([self._end], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._end, 65536)
        except OSError:  # nobody writes any more
            return False
        self.screen.write(self._decoder.decode(data))
        return bool(data)


def hear_ctrl_c() -> None:
    """What a child does first: SIGINT reaches it though these tests run where it is ignored, as `nohup` and a shell's `&` have it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def terminal(*words: str, width: int = 80, height: int = 40) -> Iterator[Terminal]:
    """`python -m WORDS` in a terminal of that size; killed at the end if it still runs."""
    end, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (height, width))
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment = {**plain, "TERM": "xterm-256color", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=hear_ctrl_c
    ) as process:
        os.close(theirs)
        try:
            yield Terminal(process, end, Screen(width, height))
        finally:
            process.kill()
            os.close(end)
