"""One file a runtime: load an artifact, run it. Shared by optimizer and server, so that what was measured is what serves."""

from __future__ import annotations

import sys

# `import openvino` alone tells Google Analytics that it happened, from a forked process that may hang for seconds without a network; NNCF does
# the same. Both do without where the package that sends is not found.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
