"""The script that the demo's pod asks with, against a server process on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.server.serving import Server
from tools.demo import traffic
from tools.demo.kube import DemoError
from tools.demo.scenes import require_same_answers


def test_each_protocol_is_asked_the_same_and_answers_the_same(tmp_path: Path) -> None:
    rows = [[0, 1, 2, 3], [4, 5, 6, 7]]
    tensors = [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row} for row in rows]
    (tmp_path / "bodies").write_text("\n".join(json.dumps({"inputs": [tensor]}) for tensor in tensors))
    server = Server(tmp_path)
    try:
        ports = ["--http-port", str(server.port), "--grpc-port", str(server.grpc)]
        command = [sys.executable, str(traffic.PROTOCOLS), "--host", "127.0.0.1", "--model", "lookup", *ports]
        done = subprocess.run(
            [*command, "--bodies", str(tmp_path / "bodies")], capture_output=True, text=True, check=True
        )
    finally:
        server.stop()
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert tuple(row["protocol"] for row in told) == traffic.WAYS
    assert [row["answers"] for row in told] == [rows] * 3
    require_same_answers(told)


def test_a_protocol_that_answers_otherwise_ends_the_demo() -> None:
    told = [{"protocol": name, "answers": [[1.0, 2.0]]} for name in traffic.WAYS]
    told[2]["answers"] = [[1.0, 2.1]]
    with pytest.raises(DemoError, match="gRPC and HTTP, JSON gave other answers"):
        require_same_answers(told)
