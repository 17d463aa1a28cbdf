"""What the tools share: files that are whole, whoever writes them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tools.cluster.shell import last_line, write


def test_one_file_may_be_written_by_several_at_once(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "pip.conf"
    texts = [f"{number}" * 5000 for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        for _ in range(20):
            list(pool.map(lambda text: write(path, text, 0o600), texts))
            assert path.read_text() in texts
    assert [found.name for found in path.parent.iterdir()] == ["pip.conf"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write(path, "text")
    assert list(tmp_path.iterdir()) == [path]


def test_of_a_build_that_failed_the_last_line_is_that_of_the_step(tmp_path: Path) -> None:
    log = tmp_path / "image.log"
    assert last_line(log) == ""
    behind = 'subprocess exited with status 1\nError: building at STEP "RUN sh install.sh": exit status 1\n\n'
    log.write_text(f"STEP 9/18: RUN sh install.sh\nTensorRT cannot be installed\n{behind}")
    assert last_line(log) == "TensorRT cannot be installed"
    log.write_text(behind)
    assert last_line(log).startswith("Error: building at STEP")
