"""A model served on this machine as a pod serves it: an artifact in a store, and a server process. For tests and benches."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import onnx
import psutil

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName
from fettle.store.manifest import DataRecord, Manifest, RecipeRecord, fetch_artifact, write_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts
from tools.ports import free_port

CLAIM = "store"
READY_SECONDS = 60


def open_store(folder: Path) -> Store:
    """The store in `folder`, which a server knows as pvc://store."""
    folder.mkdir(parents=True, exist_ok=True)
    return Store.open(f"pvc://{CLAIM}", Mounts({CLAIM: folder}))


def saved(model: onnx.ModelProto, root: Path) -> Path:
    """The model as a file below `root`, alone in its folder."""
    path = root / "source" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, path)
    return path


def publish(store: Store, model: Path, signature: Signature, **more: Any) -> str:
    """The artifact of an ONNX file as it is, alone in its folder; its digest. `more`: other parts of its manifest."""
    manifest = Manifest(
        source_sha256="0" * 64,
        data=DataRecord(),
        libraries={},
        signature=signature,
        model=store.put_model(model.parent, model.name),
        **{
            "recipe": RecipeRecord(name="portable"),
            "runtime": RuntimeName.ONNXRUNTIME,
            "settings": RuntimeSettings(threads=1),
            "tolerances": {},
            **more,
        },
    )
    return write_artifact(store, manifest)


class ServerProcess:
    """A server of an artifact, ready, and its three ports."""

    def __init__(self, store: Path, sha256: str, folder: Path, *, log: int | None = None, **settings: Any) -> None:
        """`folder` gets the artifact; `settings` are the server's, by their names; `log` is where stderr goes.

        Nothing routes requests to it that would have to learn that it stops, so it does not drain unless it is told to.
        """
        self.port, self.grpc, self.management = free_port(), free_port(), free_port()
        self.scheme = "https" if "tls_folder" in settings else "http"
        told = {
            "artifact": f"pvc://{CLAIM}/artifacts/{sha256}",
            "sha256": sha256,
            "folder": folder,
            "host": "127.0.0.1",
            "port": self.port,
            "grpc_port": self.grpc,
            "management_port": self.management,
            "drain_seconds": 0,
            **settings,
        }
        self._environment = os.environ | {f"FETTLE_SERVER_{key.upper()}": str(value) for key, value in told.items()}
        self._environment |= Mounts({CLAIM: store}).to_environment()
        fetch_artifact(str(told["artifact"]), sha256, folder, Mounts({CLAIM: store}))
        self.process = subprocess.Popen(_command("serve"), env=self._environment, stderr=log)
        try:
            self._wait_until_ready()
        except BaseException:
            self.process.kill()
            raise

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the server to its end."""
        return subprocess.run(
            _command(command), env=self._environment, capture_output=True, text=True, check=False, timeout=60
        )

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server exited with {self.process.returncode} before it was ready")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.admin}/readyz", verify=False).status_code == 200:  # as the kubelet asks
                    return
            time.sleep(0.05)
        raise TimeoutError(f"the server was not ready within {READY_SECONDS} s")

    @property
    def admin(self) -> str:
        """The management address."""
        return f"{self.scheme}://127.0.0.1:{self.management}"

    def cpu_seconds(self) -> float:
        """What the process has used."""
        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)

    def stop(self) -> None:
        """End the process, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)


def _command(name: str) -> list[str]:
    return [sys.executable, "-m", "fettle.server", name]
