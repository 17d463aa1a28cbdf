"""Runs inside the pod of `fettle prune`, sent there as text: nothing but the standard library.

stdin: a line of JSON, {"store": PATH, "keep": [SHA256, …], "older": SECONDS, "dry": bool}.
stdout: a line of JSON, {"removed": {files, bytes}, "stays": {files, bytes}, "artifacts": N}, or {"error": "…"}.

`keep` are artifacts and answers to tasks; what they name, and what that names, stays. Of the rest the blobs that were not used for
`older` seconds go, and the cached documents that name one of them. Manifests and figures stay: they tell what was tried.
"""

import json
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
PARTIAL = re.compile(r"(^|/)\.[^/]*\.partial$")
CACHED = ("builds", "trained", "results")
PASSING = ("checkpoints/", "gpu/")  # what is made again where it is missing
FOLDERS = ("blobs", *CACHED, "checkpoints", "gpu", "artifacts", "reports", "requests")


class Files(Protocol):
    """The files of a store, by their paths in it."""

    def sizes(self, folder: str) -> dict[str, tuple[int, float]]:
        """Every file below a folder: its bytes, and when it was last written or asked for."""
        ...

    def text(self, path: str) -> str:
        """The content of a document; empty where there is none."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, or nothing where it is gone."""
        ...


class Folder:
    """A store on a disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sizes(self, folder: str) -> dict[str, tuple[int, float]]:
        """See `Files`."""
        files = [path for path in (self.root / folder).glob("**/*") if path.is_file()]
        return {path.relative_to(self.root).as_posix(): (path.stat().st_size, path.stat().st_mtime) for path in files}

    def text(self, path: str) -> str:
        """See `Files`."""
        file = self.root / path
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    def remove(self, path: str) -> None:
        """See `Files`."""
        (self.root / path).unlink(missing_ok=True)


def digests(text: str) -> set[str]:
    """Every sha256 that a document names, however damaged it is."""
    return set(DIGEST.findall(text))


def reachable(store: Files, keep: Iterable[str]) -> set[str]:
    """`keep`, and all that is named from there."""
    reached: set[str] = set()
    ahead = set(keep)
    while ahead:
        digest = ahead.pop()
        reached.add(digest)
        for path in (f"artifacts/{digest}/manifest.json", f"results/{digest}.json"):
            ahead |= digests(store.text(path)) - reached
    return reached


def unfinished(store: Files, before: float) -> dict[str, int]:
    """What a process that was killed left behind, and its bytes: files half written, and checkpoints, which a training that ends removes. Also what
    libraries for GPUs found out."""
    items = [item for folder in FOLDERS for item in store.sizes(folder).items()]
    left = [item for item in items if PARTIAL.search(item[0]) or item[0].startswith(PASSING)]
    return {path: size for path, (size, used) in left if used < before}


def doomed(
    store: Files, blobs: dict[str, tuple[int, float]], kept: set[str], before: float
) -> tuple[list[str], list[str], int]:
    """Cached documents and blobs to remove, in that order, and how many artifacts lose a file."""
    names = {path: path.rsplit("/", 1)[-1] for path in blobs}
    files = [
        path for path, name in names.items() if DIGEST.fullmatch(name) and name not in kept and blobs[path][1] < before
    ]
    gone = {names[path] for path in files}
    manifests = [path for path in store.sizes("artifacts") if path.endswith("/manifest.json")]
    lost = {path.split("/")[-2] for path in manifests if digests(store.text(path)) & gone}
    cached = [path for folder in CACHED for path in store.sizes(folder) if path.endswith(".json")]
    documents = [path for path in cached if digests(store.text(path)) & (gone | lost)]
    return documents, files, len(lost)


def sweep(store: Files, asked: dict[str, Any]) -> dict[str, Any]:
    """Do what was asked, or tell what would be done. Raises OSError."""
    before, blobs = time.time() - asked["older"], store.sizes("blobs")
    documents, files, artifacts = doomed(store, blobs, reachable(store, asked["keep"]), before)
    sizes = {path: blobs[path][0] for path in files} | unfinished(store, before)
    removed = {"files": len(sizes), "bytes": sum(sizes.values())}
    if not asked["dry"]:
        # Documents first: whatever happens in between, none names a file that is not there.
        for path in (*documents, *sizes):
            store.remove(path)
    stays = {
        "files": len(blobs) - removed["files"],
        "bytes": sum(size for size, _ in blobs.values()) - removed["bytes"],
    }
    return {"removed": removed, "stays": stays, "artifacts": artifacts}


def opened(root: Path, path: str) -> Folder:
    """The store at `path` of a claim. Raises OSError where there is none."""
    store = (root / path).resolve()
    if not store.is_relative_to(root.resolve()) or not (store / "blobs").is_dir():
        raise OSError(f"no store at {path or 'the root of the claim'}: a store has a folder 'blobs'")
    return Folder(store)


if __name__ == "__main__":
    try:
        asked = json.loads(sys.stdin.buffer.readline())
        answer = sweep(opened(Path(sys.argv[1]), asked["store"]), asked)
    except OSError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
