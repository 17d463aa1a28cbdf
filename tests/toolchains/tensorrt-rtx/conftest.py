"""Tests beside this file use models.py, which is no package: the folder is named after a distribution."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
