"""Ports for the servers of tests and benches."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tools.ports import free_port

GIVEN_TO_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_no_port_is_given_twice_not_even_to_two_processes() -> None:
    script = "import time; from tools.ports import free_port; print(*(free_port() for _ in range(200)), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = [int(word) for word in process.stdout.readline().split()]
        ours = [free_port() for _ in range(200)]
        process.kill()
    assert len(theirs) == 200
    assert len({*ours, *theirs}) == 400


def test_a_port_can_be_listened_on_and_is_none_that_the_kernel_gives_to_a_connection() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert free_port() != port
    assert port < int(GIVEN_TO_CONNECTIONS.read_text().split()[0])
