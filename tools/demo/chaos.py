"""The operator's pods deleted every few seconds while the demo runs: nothing may end otherwise, and no request may fail."""

from __future__ import annotations

import threading
from types import TracebackType

from tools.demo.install import SYSTEM_NAMESPACE
from tools.demo.kube import Kube

PODS = ("pods", "-l", "app.kubernetes.io/name=fettle")


class OperatorDeleter:
    """Deletes every pod of the operator each `every` seconds, as long as the `with` block runs; `deleted` counts the rounds."""

    def __init__(self, kube: Kube, every: float) -> None:
        self.kube, self.every = Kube(kube.target, SYSTEM_NAMESPACE), every
        self.deleted = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="operator-deleter", daemon=True)

    def __enter__(self) -> OperatorDeleter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.kube.kubectl("rollout", "status", "deployment", "-l", PODS[2], "--timeout=120s")

    def _run(self) -> None:
        while not self._ended.wait(self.every):
            self.kube.kubectl("delete", *PODS, "--wait=false", check=False)
            self.deleted += 1
