"""The source as its own framework saves it, which builds start from whose family has a converter or a compiler of its own.

Of TensorFlow's that is a SavedModel, of PyTorch's a program of torch.export. It is stored only where the plan has such builds.
"""

from __future__ import annotations

import logging

from fettle.api import catalog
from fettle.api.task import StoredModel
from fettle.api.text import quoted
from fettle.api.vocabulary import ModelFormat, RuntimeName
from fettle.optimizer.prepare.job import Job
from fettle.store.files import exhausted

PROGRAM = ".pt2"
log = logging.getLogger(__name__)


def asking(job: Job) -> tuple[RuntimeName, ...]:
    """The families of the plan's builds that take this source."""
    families = dict.fromkeys(plan.family for plan in job.task.builds)
    return tuple(family for family in families if job.source.format.name in catalog.runtime(family).converts)


def native(job: Job) -> tuple[StoredModel | None, tuple[str, ...]]:
    """The stored source, if any family asks for it; and a note that names the families, if there is none for them. Raises StoreError."""
    families = ", ".join(asking(job))
    if not families:
        return None, ()
    if job.inputs.frozen:
        return None, (f"{families}: the converter cannot make an input a constant, and source.inputs gives values",)
    try:
        entry = job.source.format.native(job.source.path, job.inputs, job.folder / "native")
    except Exception as error:  # frameworks raise what they like
        if exhausted(error):
            raise
        log.info("the source cannot be saved as its framework's converter takes it", exc_info=True)
        return None, (f"{families}: the model could not be saved for its converter: {quoted(error, 200)}",)
    if entry is None:
        return None, ()
    format: ModelFormat = "TorchExport" if entry.suffix == PROGRAM else "SavedModel"
    return job.store.put_model(entry.parent, entry.name, format), ()
