"""Runs inside the pod of `fettle pull`, sent there as text: nothing but the standard library.

stdin: a line of JSON for each question; stdout: a line of JSON for each answer, {"error": "…"} where there is none.

{"info": PATH}                          {"size": N, "type": "file"} or "directory"; {"missing": true}
{"list": PATH}                          {"entries": {NAME: {size, type}}}, without what is only half written
{"digest": PATH}                        {"sha256": …}
{"read": PATH, "start": N, "end": M}    {"bytes": M - N}, then that many bytes of the file
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

UNFINISHED = ".partial"


def say(**message: Any) -> None:
    """One line of JSON, at once."""
    sys.stdout.buffer.write((json.dumps(message) + "\n").encode())
    sys.stdout.buffer.flush()


def info(path: Path) -> dict[str, Any]:
    """Size and type."""
    return {"size": path.stat().st_size, "type": "directory" if path.is_dir() else "file"}


def entries(folder: Path) -> dict[str, Any]:
    """What is in the folder. A file that went meanwhile, or a link to nowhere, is left out."""
    listed = {}
    for path in sorted(folder.iterdir()):
        half = path.name.startswith(".") and path.name.endswith(UNFINISHED)
        if path.exists() and not half:
            listed[path.name] = info(path)
    return listed


def inside(root: Path, wanted: str) -> Path:
    """The path below `root`. Raises OSError for one that leaves it, also through a link."""
    path = root / wanted.strip("/")
    if not path.resolve().is_relative_to(root.resolve()):
        raise OSError(f"{wanted} is outside the claim")
    return path


def answer(root: Path, question: dict[str, Any]) -> None:
    """Answer one question. Raises OSError."""
    kind = next(iter(question))
    path = inside(root, question[kind])
    if kind == "info":
        say(**(info(path) if path.exists() else {"missing": True}))
    elif kind == "list":
        say(entries=entries(path))
    else:
        with path.open("rb") as stream:
            if kind == "digest":
                say(sha256=hashlib.file_digest(stream, "sha256").hexdigest())
                return
            stream.seek(question["start"])
            data = stream.read(question["end"] - question["start"])
            say(bytes=len(data))
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def main(root: Path) -> None:
    """Answer until stdin ends."""
    for line in sys.stdin.buffer:
        try:
            answer(root, json.loads(line))
        except OSError as error:
            say(error=str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
