"""Runs a toolchain's tests in its environment, and says what came of them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tools.toolchains.toolchain import Toolchain

VARIABLE = "FETTLE_TOOLCHAIN"  # its value is the toolchain whose tests are collected: tests/toolchains/conftest.py


@dataclass(frozen=True)
class Outcome:
    """How many tests of a toolchain there were, and how many of them neither passed nor were skipped."""

    name: str
    tests: int = 0
    skipped: int = 0
    failed: int = 0
    status: int = 0
    error: str = ""  # why they could not run

    @property
    def passed(self) -> int:
        """Tests that ran to their end and held."""
        return self.tests - self.skipped - self.failed

    @property
    def good(self) -> bool:
        """Whether they ran, at least one of them, and none failed: a toolchain whose tests are all skipped proves nothing."""
        return not self.error and self.status == 0 and self.failed == 0 and self.passed > 0

    def __str__(self) -> str:
        if self.error:
            return f"{self.name}: FAILED: {self.error}"
        told = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        if self.good:
            return f"{self.name}: {told}"
        return f"{self.name}: FAILED: {told if self.tests else 'no test was collected'} (exit status {self.status})"


def run(toolchain: Toolchain, interpreter: Path, arguments: tuple[str, ...] = ()) -> Outcome:
    """Run the toolchain's tests with `interpreter`; their output goes to this process's."""
    root = toolchain.root
    environment = {
        **os.environ,
        VARIABLE: toolchain.name,
        "PYTHONPATH": f"{root / 'operator'}{os.pathsep}{root}",
    }
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "tests.xml")
        # -rs: why a test was skipped is part of what it says.
        words = (interpreter, "-m", "pytest", "-rs", f"--junitxml={report}", *arguments, toolchain.tests)
        done = subprocess.run([str(word) for word in words], check=False, cwd=root, env=environment)
        if not report.exists():
            return Outcome(toolchain.name, status=done.returncode, error=f"pytest ended with {done.returncode}")
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))

    def total(*names: str) -> int:
        return sum(int(suite.get(name, "0")) for suite in suites for name in names)

    return Outcome(toolchain.name, total("tests"), total("skipped"), total("failures", "errors"), done.returncode)
