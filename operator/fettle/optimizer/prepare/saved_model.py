"""The source as a SavedModel, which builds start from whose family has TensorFlow's own converter: only where the plan has such builds."""

from __future__ import annotations

import logging

from fettle.api import catalog
from fettle.api.task import StoredModel
from fettle.api.text import quoted
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer.prepare.job import Job

log = logging.getLogger(__name__)


def asking(job: Job) -> tuple[RuntimeName, ...]:
    """The families of the plan's builds whose converter takes this source."""
    families = dict.fromkeys(plan.family for plan in job.task.builds)
    return tuple(family for family in families if job.source.format.name in catalog.runtime(family).converts)


def saved_model(job: Job) -> tuple[StoredModel | None, tuple[str, ...]]:
    """The stored SavedModel, if any family asks for it; and a note that names the families, if there is none for them. Raises StoreError."""
    families = ", ".join(asking(job))
    if not families:
        return None, ()
    if job.inputs.frozen:
        return None, (f"{families}: the converter cannot make an input a constant, and source.inputs gives values",)
    try:
        entry = job.source.format.saved_model(job.source.path, job.inputs, job.folder / "saved-model")
    except MemoryError:
        raise
    except Exception as error:  # frameworks raise what they like
        log.info("the source cannot be saved as a SavedModel", exc_info=True)
        return None, (f"{families}: the model could not be saved for its converter: {quoted(error, 200)}",)
    return (job.store.put_model(entry.parent, entry.name, "SavedModel") if entry is not None else None), ()
