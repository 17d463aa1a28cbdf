"""versitygw, an S3 server on a folder: it checks who asks, keeps what it has when it is killed, and can be started again."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tools.cluster.shell import Progress
from tools.integrations.programs import VERSITYGW, ensure
from tools.ports import free_port

REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """A running server, with a bucket and an identity that may do anything."""

    url: str
    bucket: str
    key: str
    secret: str

    def keys(self, folder: Path, **others: str) -> Path:
        """A folder as the pod sees a Secret that opens this server; `others` replace or add keys."""
        values = {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.url,
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (values | others).items():
            (folder / name).write_text(value)
        return folder


@dataclass
class Gateway:
    """The server and its folder, in which every folder is a bucket. `host`: the address that it listens on."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    key: str = field(default_factory=lambda: f"key{secrets.token_hex(8)}")
    secret: str = field(default_factory=lambda: secrets.token_hex(20))
    process: subprocess.Popen[bytes] | None = None

    def bucket(self, name: str) -> S3Server:
        """A bucket of it."""
        (self.folder / "data" / name).mkdir(parents=True, exist_ok=True)
        return S3Server(f"http://{self.host}:{self.port}", name, self.key, self.secret)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        binary = ensure(VERSITYGW, Progress("versitygw"))
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        options = ("--access", self.key, "--secret", self.secret, "--region", REGION)
        command = [str(binary), *options, "--port", f"{self.host}:{self.port}", "posix", str(self.folder / "data")]
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "gateway.log").read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex((self.host, self.port)) == 0
