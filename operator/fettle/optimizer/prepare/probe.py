"""Whether a runtime can load a file, tested in a separate process: a crash in the library must not end the stage."""

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
    """Why that runtime cannot load the model at `path`; None if it can."""
    command = [sys.executable, "-m", __name__, name, str(path), signature.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == REFUSED:
        return done.stderr.strip().splitlines()[-1]
    return None if done.returncode == 0 else f"it crashed while it loaded the model (exit status {done.returncode})"


def main(name: str, path: str, signature: str) -> int:
    """Load the model; the exit status says whether that went well, the last line of stderr why not."""
    try:
        runtime = base.get(RuntimeName(name))
        runtime.load(Path(path), RuntimeSettings(threads=1), Signature.model_validate_json(signature)).close()
    except RuntimeFailure as error:
        sys.stderr.write(f"\n{' '.join(error.message.split())}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
