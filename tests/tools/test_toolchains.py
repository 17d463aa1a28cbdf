"""Environments of large toolchains are made once, and their tests cannot pass without running."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tools.toolchains import __main__, environment, tests
from tools.toolchains.toolchain import Toolchain, ToolchainError, read, toolchains

ROOT = Path(__file__).parents[2]

PASSING = "def test_it() -> None:\n    assert True\n"
FAILING = "def test_it() -> None:\n    assert 1 == 2\n"
SKIPPED = "import pytest\n\n\n@pytest.mark.skip(reason='no device')\ndef test_that() -> None:\n    assert True\n"
BROKEN = "import a_library_that_is_not_there\n"


@pytest.mark.parametrize(
    ("files", "good", "told"),
    [
        ({"test_a.py": PASSING}, True, "toy: 1 passed, 0 failed, 0 skipped"),
        ({"test_a.py": PASSING, "test_b.py": SKIPPED}, True, "toy: 1 passed, 0 failed, 1 skipped"),
        ({"test_a.py": PASSING, "test_b.py": FAILING}, False, "toy: FAILED: 1 passed, 1 failed, 0 skipped (exit status 1)"),
        ({"test_a.py": SKIPPED}, False, "toy: FAILED: 0 passed, 0 failed, 1 skipped (exit status 0)"),
        ({"test_a.py": PASSING, "test_b.py": BROKEN}, False, "(exit status 2)"),
        ({}, False, "toy: FAILED: no test was collected (exit status 5)"),
    ],
    ids=["passed", "one skipped", "one failed", "all skipped", "cannot be imported", "none"],
)  # fmt: skip
def test_a_toolchain_is_good_only_if_a_test_of_it_passed_and_none_failed(
    files: dict[str, str], good: bool, told: str, tmp_path: Path
) -> None:
    toolchain = toy(tmp_path)
    for name, text in files.items():
        (toolchain.tests / name).write_text(text)
    outcome = tests.run(toolchain, Path(sys.executable), ("-p", "no:cacheprovider", "-p", "no:xdist"))
    assert outcome.good == good
    assert told in str(outcome)


def test_a_toolchain_whose_tests_are_not_there_fails(tmp_path: Path) -> None:
    toolchain = toy(tmp_path)
    toolchain.tests.rmdir()
    assert not tests.run(toolchain, Path(sys.executable), ("-p", "no:xdist")).good


def test_an_environment_is_made_once_and_again_when_its_lock_changes(tmp_path: Path) -> None:
    toolchain, told = toy(tmp_path), list[str]()
    interpreter = environment.make(toolchain, told.append)
    version = subprocess.run([str(interpreter), "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
    assert version.stdout.strip() == sys.version
    (toolchain.environment / "kept").touch()
    environment.make(toolchain, told.append)
    assert (toolchain.environment / "kept").exists()
    toolchain.lock.write_text("# another one\n")
    environment.make(toolchain, told.append)
    assert not (toolchain.environment / "kept").exists()
    installing = "installing 0 packages in .cache/toolchains/toy"
    assert told == [installing, "installed", "the environment is there", installing, "installed"]


def test_an_environment_that_cannot_be_made_is_begun_anew_the_next_time(tmp_path: Path) -> None:
    toolchain = toy(tmp_path)
    toolchain.lock.write_text("not a requirement at all\n")
    for _ in range(2):
        with pytest.raises(ToolchainError, match="not a requirement at all"):
            environment.make(toolchain, lambda _: None)
    assert not (toolchain.environment / "stamp").exists()


def test_a_toolchain_without_a_lock_says_how_to_make_one(tmp_path: Path) -> None:
    toolchain = toy(tmp_path)
    toolchain.lock.unlink()
    with pytest.raises(ToolchainError, match=r"python -m tools.toolchains lock toy"):
        environment.make(toolchain, lambda _: None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("about = 'x'\nrequirements = ['numpy>=2']", r"pinned as name==version, found \['numpy>=2'\]"),
        ("about = 'x'\nrequirements = ['numpy==2.*']", "pinned as name==version"),
        ("requirements = ['numpy==2.4.6']", r"missing keys \['about'\]"),
        ("about = 'x'\nrequirements = []\ntest = 'there'", r"unknown keys \['test'\]"),
        ("about = ", "toy.toml"),
    ],
)
def test_a_file_that_says_something_else_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_text(text)
    with pytest.raises(ToolchainError, match=complaint):
        read(path, tmp_path)


def test_a_name_that_is_not_there_ends_with_what_is() -> None:
    result = CliRunner().invoke(__main__.main, ["run", "abacus"])
    assert isinstance(result.exception, ToolchainError)
    assert "no toolchain abacus; known: " in str(result.exception)


@pytest.mark.parametrize("toolchain", toolchains(), ids=lambda toolchain: toolchain.name)
def test_each_toolchain_has_tests_and_a_lock_of_what_it_asks_for(toolchain: Toolchain) -> None:
    assert list(toolchain.tests.glob("test_*.py"))
    locked = {line.split(" ")[0].lower() for line in toolchain.lock.read_text().splitlines() if line[:1].isalnum()}
    assert {line.partition(";")[0].strip().lower() for line in toolchain.requirements} <= locked


def test_their_tests_are_collected_by_nothing_else() -> None:
    own = {name: value for name, value in os.environ.items() if name != tests.VARIABLE}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "--collect-only", "-q", "tests/toolchains"]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout


def toy(root: Path) -> Toolchain:
    """A toolchain below `root` that installs nothing."""
    toolchain = Toolchain("toy", "a toy", (), root=root)
    toolchain.tests.mkdir(parents=True)
    toolchain.lock.parent.mkdir(parents=True)
    toolchain.lock.write_text("# nothing\n")
    return toolchain
