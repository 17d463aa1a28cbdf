"""Runs inside the pod of `fettle push`, sent there as text: nothing but the standard library.

stdin: a line of JSON, [{path, bytes, sha256}, …], then the content of the files that were asked for, one after the other.
stdout: a line {"want": [index, …]} (the others are there already), a line {"done": index} for each file, and {"ok": true};
or {"error": "…"} and exit status 1. Every file is written under a temporary name, checked and renamed.
"""

import hashlib
import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


def say(**message: Any) -> None:
    """One line of JSON, at once."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def is_there(path: Path, entry: dict[str, Any]) -> bool:
    """Whether the file has that content already."""
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    with path.open("rb") as stream:
        return bool(hashlib.file_digest(stream, "sha256").hexdigest() == entry["sha256"])


def receive(path: Path, entry: dict[str, Any]) -> None:
    """The next bytes of stdin as that file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}.partial")  # as store/files.py names them
    digest, left = hashlib.sha256(), entry["bytes"]
    try:
        with temporary.open("wb") as stream:
            while left:
                data = sys.stdin.buffer.read(min(CHUNK, left))
                if not data:
                    raise OSError(f"the connection closed {left} bytes before the end of {entry['path']}")
                digest.update(data)
                stream.write(data)
                left -= len(data)
            stream.flush()
            os.fsync(stream.fileno())
        if digest.hexdigest() != entry["sha256"]:
            raise OSError(f"{entry['path']} was damaged in transit")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(root: Path) -> None:
    """Receive into `root`. Raises OSError."""
    os.umask(0o002)  # folders stay writable for the group that owns the volume
    entries = json.loads(sys.stdin.buffer.readline())
    want = [index for index, entry in enumerate(entries) if not is_there(root / entry["path"], entry)]
    needed, free = sum(entries[index]["bytes"] for index in want), shutil.disk_usage(root).free
    if needed > free:
        raise OSError(f"{needed} bytes must be written, but the claim has only {free} free")
    say(want=want)
    for index in want:
        receive(root / entries[index]["path"], entries[index])
        say(done=index)
    say(ok=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except OSError as error:
        say(error=str(error))
        sys.exit(1)
