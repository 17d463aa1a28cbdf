"""Where the demo's files and its store lie: in claims, or in a bucket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.demo import install
from tools.demo.kube import DemoError, Kube

FILES = "pvc://models"  # in the manifests
SECRET = "demo-bucket"


@dataclass(frozen=True)
class Claims:
    """Where the manifests say."""

    pushing = f"fettle push examples/digits {FILES}/digits"  # the command

    def push(self, kube: Kube) -> None:
        """Bring the files there."""
        install.push(kube, install.DIGITS, f"{FILES}/digits")

    def objects(self, manifest: str) -> list[dict[str, Any]]:
        """The objects of a manifest."""
        return list(yaml.safe_load_all(manifest))

    def report(self, kube: Kube, name: str, to: Path) -> None:
        """The report of an OptimizedModel."""
        install.report(kube, name, to, "--image", install.images(kube.target)["server"])


@dataclass(frozen=True)
class Bucket:
    """Below an address such as s3://demo, opened by the folder `keys`, which has a file for each key."""

    address: str
    keys: Path

    @property
    def pushing(self) -> str:
        """The command that brings the files there."""
        return f"fettle push examples/digits {self.address}/digits --secret {self.keys}"

    def push(self, kube: Kube) -> None:
        """Bring the files and the Secret there."""
        if not self.keys.is_dir():
            raise DemoError(f"{self.keys}: expected a folder with a file for each key, such as AWS_ACCESS_KEY_ID")
        values = {file.name: file.read_text() for file in self.keys.iterdir() if file.is_file()}
        kube.apply([{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": values}])
        command = ("push", str(install.DIGITS), f"{self.address}/digits", "--secret", str(self.keys))
        install.fettle(kube, *command)

    def objects(self, manifest: str) -> list[dict[str, Any]]:
        """The objects of a manifest, with their addresses in the bucket."""
        found = list(yaml.safe_load_all(manifest))
        for each in found:
            if each["kind"] == "OptimizedModel":
                spec = each["spec"]
                for entry in (spec["source"], *spec["data"].values()):
                    entry["uri"] = entry["uri"].replace(FILES, self.address)
                    entry["secretName"] = SECRET
                spec["store"] = {"uri": f"{self.address}/store", "secretName": SECRET}
        return found

    def report(self, kube: Kube, name: str, to: Path) -> None:
        """The report of an OptimizedModel."""
        install.report(kube, name, to, "--secret", str(self.keys))


Place = Claims | Bucket
