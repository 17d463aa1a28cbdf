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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def digests(path: Path) -> set[str]:
    """Every sha256 that a document names, however damaged it is."""
    return set(DIGEST.findall(path.read_text(encoding="utf-8", errors="replace")))


def reachable(store: Path, keep: Iterable[str]) -> set[str]:
    """`keep`, and all that is named from there."""
    reached: set[str] = set()
    ahead = set(keep)
    while ahead:
        digest = ahead.pop()
        reached.add(digest)
        for path in (store / "artifacts" / digest / "manifest.json", store / "results" / f"{digest}.json"):
            if path.is_file():
                ahead |= digests(path) - reached
    return reached


def unfinished(store: Path) -> Iterator[Path]:
    """What a process that was killed left half written."""
    for folder in ("blobs", "builds", "trained", "checkpoints", "results", "artifacts", "reports"):
        yield from (store / folder).glob("**/.*.partial")


def doomed(store: Path, kept: set[str], before: float) -> tuple[list[Path], list[Path], int]:
    """Cached documents and files to remove, in that order, and how many artifacts lose a file."""
    blobs = [path for path in (store / "blobs").glob("*") if DIGEST.fullmatch(path.name) and path.name not in kept]
    files = [path for path in blobs if path.stat().st_mtime < before]
    gone = {path.name for path in files}
    lost = {path.parent.name for path in (store / "artifacts").glob("*/manifest.json") if digests(path) & gone}
    cached = [path for folder in ("builds", "trained", "results") for path in (store / folder).glob("*.json")]
    documents = [path for path in cached if digests(path) & (gone | lost)]
    abandoned = [*unfinished(store), *(store / "checkpoints").glob("*/*.pt")]  # a training that ends removes its own
    files += [path for path in abandoned if path.stat().st_mtime < before]
    return documents, files, len(lost)


def sweep(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Do what was asked, or tell what would be done. Raises OSError."""
    store = (root / asked["store"]).resolve()
    if not store.is_relative_to(root.resolve()) or not (store / "blobs").is_dir():
        raise OSError(f"no store at {asked['store'] or 'the root of the claim'}: a store has a folder 'blobs'")
    documents, files, artifacts = doomed(store, reachable(store, asked["keep"]), time.time() - asked["older"])
    removed = {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
    everything = [path.stat().st_size for path in (store / "blobs").iterdir()]
    if not asked["dry"]:
        # Documents first: whatever happens in between, none names a file that is not there.
        for path in (*documents, *files):
            path.unlink(missing_ok=True)
    stays = {"files": len(everything) - removed["files"], "bytes": sum(everything) - removed["bytes"]}
    return {"removed": removed, "stays": stays, "artifacts": artifacts}


if __name__ == "__main__":
    try:
        answer = sweep(Path(sys.argv[1]), json.loads(sys.stdin.buffer.readline()))
    except OSError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
