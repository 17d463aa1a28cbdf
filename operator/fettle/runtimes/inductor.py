"""AOTInductor on CPU: what PyTorch's compiler made of a program of torch.export, machine code and weights in one package.

Facts that this file rests on (2.15):
- Loading a package runs its code. Only Fettle's own are loaded: they have a note in their metadata, and are part of an artifact whose digests were
  checked. A CPU that lacks an instruction ends the process, so the note says which it needs, and is read before anything is loaded.
- A package does not check the shapes that it is given; the signature does.
- A run holds Python's lock, so a process runs one at a time, and streams are refused. It cannot be ended.
- Its number of threads belongs to the process, as that of `torchscript`, whatever number it was compiled for.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fettle.api.base import ApiModel
from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.text import joined, quoted
from fettle.api.vocabulary import RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes import cpu
from fettle.runtimes.base import Arrays, require_file
from fettle.runtimes.torchscript import Program, TorchScript, failure

NOTE = "fettle"  # key of the package's metadata
_METADATA = "_metadata.json"  # end of its file's name


class PackageNote(ApiModel):
    """What a package does not say of itself: the CPU that it was compiled for, by its architecture and features, and the precision of its layers, as
    the program has them."""

    architecture: str
    requires: tuple[str, ...]
    executed: Executed


class Inductor(TorchScript):
    """See `base.Runtime`. What is compiled is optimized: `graph_optimization` changes nothing."""

    name = RuntimeName.INDUCTOR

    def open(self, entry: Path) -> Program:
        """See `TorchScript.open`. Raises RuntimeFailure: NodeIncompatible on a CPU that the package was not compiled for."""
        _require_machine(read_note(entry))
        try:
            # `aoti_load_package` would have the file end in .pt2, and would read both specifications again in every call.
            package = torch._C._aoti.AOTIModelPackageLoader(str(entry), "model", False, 1, -1, False)
            answer = pytree.treespec_loads(package.get_call_spec()[1])
        except Exception as error:  # the library raises RuntimeError and others alike
            raise failure("PyTorch could not load the compiled model", error) from error

        def call(tensors: Sequence[torch.Tensor]) -> Any:
            return pytree.tree_unflatten(package.boxed_run(list(tensors)), answer)

        return Program(package, (), call)  # which does not name its inputs

    def optimized(self, program: Program) -> Program:
        """See `TorchScript.optimized`."""
        return program

    def executed(
        self, entry: Path, settings: RuntimeSettings, inputs: Arrays, signature: Signature | None = None
    ) -> Executed:
        """See `base.Runtime.executed`: the layers of the program that was compiled. Nothing is run, so `inputs` are not used."""
        return read_note(entry).executed


def read_note(entry: Path) -> PackageNote:
    """The note in a package, of which nothing is loaded. Raises RuntimeFailure."""
    require_file(entry)
    try:
        with zipfile.ZipFile(entry) as archive:
            told = next((name for name in archive.namelist() if name.endswith(_METADATA)), None)
            metadata = json.loads(archive.read(told)) if told is not None else {}
        return PackageNote.model_validate_json(metadata[NOTE])
    except (zipfile.BadZipFile, KeyError, ValueError) as error:  # pydantic's is a ValueError too
        message = (
            f"{entry.name} is damaged, or not a package that this version of Fettle compiled: {quoted(error, 200)}"
        )
        raise RuntimeFailure(message) from error


def _require_machine(note: PackageNote) -> None:
    """Raises RuntimeFailure (NodeIncompatible) for a package that this machine cannot run."""
    here = cpu.detect()
    lacking = [note.architecture] if note.architecture != here.architecture else cpu.missing(note.requires, here)
    if lacking:
        message = (
            f"the model was compiled for a CPU with {joined(lacking)}, which this one ({here.label}) lacks: choose nodes like the one that it was "
            "compiled on, or optimize it again on nodes like this one"
        )
        raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)


RUNTIME = Inductor()
