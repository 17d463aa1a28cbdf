"""A platform team's git repository, made from examples/gitops and the chart as the example's README says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from tools.demo.kube import ROOT

EXAMPLE_URL = "https://git.example.com/platform/fettle.git"
APPS, MODELS = Path("examples/gitops/apps"), Path("examples/gitops/models")


class Repository:
    """The repository, and the commits of its team."""

    def __init__(self, folder: Path, images: Mapping[str, str]) -> None:
        self.folder = folder
        for part in ("charts/fettle", "examples/gitops"):
            shutil.copytree(ROOT / part, folder / part)
        for file in (folder / "examples/gitops").rglob("*.yaml"):
            file.write_text(file.read_text().replace(EXAMPLE_URL, f"file://{folder}"))
        self.edit(APPS / "fettle.yaml", lambda app: _with_images(app, images))
        self._git("init", "--quiet", "--initial-branch", "main")
        self.commit("everything")

    def read(self, path: Path) -> Any:
        """The manifest in a file."""
        return yaml.safe_load((self.folder / path).read_text())

    def edit(self, path: Path, change: Callable[[Any], object]) -> None:
        """Change the manifest in a file, uncommitted."""
        manifest = self.read(path)
        change(manifest)
        (self.folder / path).write_text(yaml.safe_dump(manifest, sort_keys=False))

    def commit(self, message: str) -> None:
        """Commit all that changed."""
        self._git("add", "--all")
        who = ("-c", "user.name=platform", "-c", "user.email=platform@example.com")
        self._git(*who, "commit", "--quiet", "--message", message)

    def revert(self) -> None:
        """Take the last commit back by another one."""
        self._git("-c", "user.name=platform", "-c", "user.email=platform@example.com", "revert", "--no-edit", "HEAD")

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", "-C", str(self.folder), *arguments], check=True, capture_output=True)


def _with_images(app: Any, images: Mapping[str, str]) -> None:
    values = app["spec"]["source"]["helm"]["valuesObject"]
    for name, reference in images.items():
        repository, _, tag = reference.rpartition(":")
        if name in values["image"]:
            values["image"][name] = {"repository": repository, "tag": tag}
    values["jobs"] = {"measureSeconds": 3}  # what runs here is the chain, not a benchmark
