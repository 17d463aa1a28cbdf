"""What a file of PyTorch's is, told from its table of contents: nothing in it is loaded, PyTorch is not needed.

All are zip archives with one folder at the top: TorchScript has code/ and constants.pkl, an exported program models/*.json (since 2.8;
before, serialized_exported_program.json), a package of AOTInductor data/aotinductor/, and what `torch.save` writes has data.pkl and no code.
"""

from __future__ import annotations

import zipfile
from enum import StrEnum
from pathlib import Path, PurePosixPath


class Contents(StrEnum):
    """Kinds of PyTorch archives."""

    SCRIPT = "TorchScript"
    EXPORT = "TorchExport"
    COMPILED = "AOTInductor"
    PICKLE = "pickle"


def contents(path: Path) -> Contents | None:
    """Kind of the archive at `path`; None for another zip archive. Raises zipfile.BadZipFile for a damaged one.

    An archive with machine code in it is AOTInductor's, whatever else it holds: `torch.export.load` (2.15) loads the machine code too.
    This table may differ from what PyTorch reads in the same file, so that `torch_program` decides again before it loads one.
    """
    with zipfile.ZipFile(path) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    last = {name.name for name in names}
    if any("aotinductor" in name.parts for name in names):
        return Contents.COMPILED
    if "serialized_exported_program.json" in last or any(name.match("models/*.json") for name in names):
        return Contents.EXPORT
    if "constants.pkl" in last and any("code" in name.parts[:2] for name in names):
        return Contents.SCRIPT
    return Contents.PICKLE if "data.pkl" in last else None
