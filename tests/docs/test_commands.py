"""The commands that the pages show are run as they stand: those of a shell in a shell, those for a cluster until they need one.

What they do on a cluster, the tests of a cluster show; `fettle optimize` of the examples, tests/unit/cli/test_example_*.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.docs.pages import PAGES, ROOT, SHELLS, blocks
from tests.docs.test_snippets import COMMANDS, PROGRAMS, resolve
from tests.pod_environment import POD_ENVIRONMENT

NOWHERE = "/nowhere/kubeconfig"
COMPLETIONS = sorted(
    {
        line
        for page in PAGES
        for block in blocks(page)
        if block.language in SHELLS
        for line in block.text.splitlines()
        if "fettle completion" in line
    }
)


@pytest.mark.parametrize("line", COMPLETIONS)
def test_a_line_that_sets_up_completion_does_so(line: str, tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "fish" / "completions"
    folder.mkdir(parents=True)
    program = Path(sys.executable).parent
    path = f"{program}:{os.environ['PATH']}"
    environment = {**POD_ENVIRONMENT, "PATH": path, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    script = f'set -euo pipefail; fpath=(none "$HOME"); {line}\n[[ "{line}" != source* ]] || complete -p fettle'
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    written = [path.read_text() for path in (tmp_path / "_fettle", folder / "fettle.fish") if path.exists()]
    assert "_fettle_completion" in "".join([done.stdout, *written])


def for_a_cluster() -> list[Any]:
    """Whole commands, of blocks, that talk to a cluster."""
    found = {}
    for where, words in COMMANDS:
        if ":" not in where or (
            words[0] != "fettle" and words[:2] != ["kubectl", "fettle"]
        ):  # of no block, or not ours
            continue
        command, rest = resolve(words)
        read = command.name == "pull" and not rest[0].startswith(("pvc://", "om/"))
        local = read or any(word.startswith(("oci://", "s3://")) for word in rest)
        if any(parameter.name == "kubeconfig" for parameter in command.params) and not local:
            found[" ".join(words)] = words
    return [pytest.param(words, id=line) for line, words in found.items()]


@pytest.mark.parametrize("words", for_a_cluster())
def test_a_command_is_taken_up_to_the_cluster_that_is_not_there(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "model.onnx").write_bytes(b"the reader's own")
    if "push" in words:
        (tmp_path / "live.npz").write_bytes(b"what `sample` wrote")
    for name in ("mine", "digits"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(b"the reader's own")
    monkeypatch.chdir(tmp_path)
    program, rest = next((PROGRAMS[key], words[len(key) :]) for key in PROGRAMS if tuple(words[: len(key)]) == key)
    result = CliRunner().invoke(program, [*rest, "--kubeconfig", NOWHERE])
    assert result.exit_code == 2, result.output
    assert "no usable kubeconfig" in result.output
    assert len(result.output.splitlines()) == 1
