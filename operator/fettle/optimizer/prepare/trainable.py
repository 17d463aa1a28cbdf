"""The program of torch.export that trainings start from, where the source is a module of PyTorch and not such a program itself.

A module trains better as its own framework saves it than as the portable form taken back to PyTorch: batch normalization is not folded into weights,
and no operator has to be converted twice. It is used only if it answers as the source does once it was opened and written as each step does that
trains.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fettle.api.signature import Signature
from fettle.api.task import StoredModel
from fettle.api.text import quoted
from fettle.api.vocabulary import FormatName, ModelFormat
from fettle.optimizer.prepare.job import Job
from fettle.optimizer.reference import OriginalAnswers
from fettle.store.files import exhausted

MODULES = (FormatName.TORCH_MODULE, FormatName.HUGGING_FACE)
FORMAT: ModelFormat = "TorchExport"
log = logging.getLogger(__name__)


def wanted(job: Job) -> bool:
    """Whether a build of the plan trains, and the source has such a program."""
    return job.source.format.name in MODULES and any(plan.trains for plan in job.task.builds)


def program(job: Job, signature: Signature, reference: OriginalAnswers) -> tuple[StoredModel | None, tuple[str, ...]]:
    """The stored program, and a note where the portable form has to do instead. Raises StoreError."""
    if not wanted(job):
        return None, ()
    try:
        entry = job.source.format.native(job.source.path, job.inputs, job.folder / "exported")
        if entry is None:
            return None, ()
        written, moved = _written(entry, signature, reference, job.folder / "program")
    except Exception as error:  # PyTorch raises what it likes
        if exhausted(error):
            raise
        log.info("the source has no program that trainings could start from", exc_info=True)
        moved = quoted(error, 200)
    if moved is not None:
        return None, (f"trainings start from the portable form, not from the module's own program: {moved}",)
    return job.store.put_model(written.parent, written.name, FORMAT), ()


def _written(entry: Path, signature: Signature, reference: OriginalAnswers, folder: Path) -> tuple[Path, str | None]:
    """The program as steps that train write it, which needs no library of the source's, and how it answers otherwise than the source."""
    from fettle.optimizer.training.export import save
    from fettle.optimizer.training.program import opened, runner
    from fettle.runtimes.torchscript import to_tensor

    folder.mkdir()
    module = opened(entry, signature)
    example = [to_tensor(reference.inputs[0][tensor.name]) for tensor in signature.inputs]
    if signature.batchable:
        axes = [tensor.batch_axis for tensor in signature.inputs]
        example = [
            one if axis is None else one.repeat_interleave(2, axis) for one, axis in zip(example, axes, strict=True)
        ]
    path = save(module, example, signature, folder / "model.pt2")
    return path, reference.differs(runner(opened(path, signature), signature))
