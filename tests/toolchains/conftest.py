"""Tests here run in the environment of their toolchain, with `python -m tools.toolchains run NAME`: elsewhere none is collected."""

import os
from pathlib import Path

RUNNING = os.environ.get("FETTLE_TOOLCHAIN", "")
collect_ignore = [path.name for path in Path(__file__).parent.iterdir() if path.is_dir() and path.name != RUNNING]
