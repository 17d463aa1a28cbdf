"""The operator's pods deleted every few seconds while the demo runs: nothing may end otherwise, and no request may fail."""

from __future__ import annotations

from types import TracebackType

from tools.demo.background import Background
from tools.demo.install import SYSTEM_NAMESPACE
from tools.demo.kube import Kube

PODS = ("pods", "-l", "app.kubernetes.io/name=fettle")


class OperatorDeleter(Background):
    """Deletes every pod of the operator each `every` seconds, as long as the `with` block runs; `deleted` counts the rounds."""

    def __init__(self, kube: Kube, every: float) -> None:
        super().__init__("operator-deleter", every)
        self.kube = Kube(kube.target, SYSTEM_NAMESPACE)
        self.deleted = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.kube.kubectl("rollout", "status", "deployment", "-l", PODS[2], "--timeout=120s")

    def turn(self) -> None:
        """Delete them once."""
        self.kube.kubectl("delete", *PODS, "--wait=false", check=False)
        self.deleted += 1
