"""Whether a runtime loads a file, asked in a process of its own: a library that crashes must not take the stage with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes import base

REFUSED = 3  # exit status; any other but 0 is a crash


def refusal(name: RuntimeName, path: Path, signature: Signature) -> str | None:
    """Why that runtime does not load the model at `path`; None where it does."""
    command = [sys.executable, "-m", __name__, name, str(path), signature.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == REFUSED:
        return done.stderr.strip().splitlines()[-1]
    return None if done.returncode == 0 else f"it crashed while it loaded the model (exit status {done.returncode})"


def refusal_here(name: str, path: str, signature: str) -> str | None:
    """The same in this process, which a crash ends; in one line."""
    try:
        runtime = base.get(RuntimeName(name))
        runtime.load(Path(path), RuntimeSettings(threads=1), Signature.model_validate_json(signature)).close()
    except RuntimeFailure as error:
        return " ".join(error.message.split())
    return None


def main(name: str, path: str, signature: str) -> int:
    """Load the model; the exit status says whether that went well, the last line of stderr why not."""
    why = refusal_here(name, path, signature)
    if why is None:
        return 0
    sys.stderr.write(f"\n{why}\n")
    return REFUSED


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
