"""What a task's process finds in its pod: programs, and nothing of this machine's environment."""

from __future__ import annotations

import sys

# Where `make` keeps bytecode: a process that does not know compiles every library that it imports.
_BYTECODE = {"PYTHONPYCACHEPREFIX": sys.pycache_prefix} if sys.pycache_prefix is not None else {}
POD_ENVIRONMENT = {"PATH": "/usr/bin:/bin", **_BYTECODE}
