"""`fettle.optimize`: the same plan, processes and digests as the command `fettle optimize`, for a model and items in memory."""

from __future__ import annotations

import asyncio
import html
import tempfile
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any, Unpack

import yaml
from rich.console import Console

from fettle.api.optimizedmodel_status import ArtifactStatus, OptimizedModelStatus
from fettle.api.task import SECONDS_PER_CANDIDATE
from fettle.api.vocabulary import Objective
from fettle.cli.local.manifests import read
from fettle.cli.local.model_options import ModelOptions
from fettle.cli.local.model_run import model_run
from fettle.cli.local.mounts import DEFAULT_FOLDER, Places, places
from fettle.cli.local.results import keep_result
from fettle.cli.local.run import LocalRun
from fettle.cli.views.progress import PlainDisplay, candidates_table, stage_line
from fettle.errors import UsageError
from fettle.library.items import LABELS, LearningItems, RunItems
from fettle.library.models import written
from fettle.library.predict import Predictor
from fettle.runtimes.base import Array

WIDTH = 160  # columns of the table of candidates


@dataclass(frozen=True)
class Target:
    """Where the model will serve. Default `runtimes`: those that `fettle optimize` tries; default `threads`: all cores of this machine."""

    runtimes: tuple[str, ...] = ()
    threads: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class RunOptions:
    """Options of a run: the folder of its `store`, seconds of timing for each finalist, whether it prints its progress."""

    store: Path | str = DEFAULT_FOLDER
    objective: str = Objective.LATENCY.value
    measure_seconds: float = SECONDS_PER_CANDIDATE
    progress: bool = True


@dataclass(frozen=True)
class Result:
    """The result of a run. A notebook shows it as the report."""

    status: OptimizedModelStatus
    located: Places

    @property
    def message(self) -> str:
        """One line: what was published and its gain, or why nothing was published."""
        return stage_line(self.status)

    @property
    def winner(self) -> ArtifactStatus | None:
        """The published artifact; None if no candidate keeps every constraint."""
        return next(iter(self.status.artifacts), None)

    @property
    def artifact(self) -> Path | None:
        """The winner's folder in the store, which `fettle pull` accepts."""
        return Path(self.located.local(self.winner.uri)) if self.winner is not None else None

    def predict(self, inputs: Any) -> Array | dict[str, Array]:
        """The winner's answers, as its server gives them: an array if it has one output, else a dictionary of arrays by output.

        `inputs`: an array, several arrays in the order of the model's inputs, or a dictionary of arrays by input, with any number of items.
        The first call loads the model. Raises UsageError if nothing was published or the inputs do not fit the model; RuntimeFailure.
        """
        return self._predictor.predict(inputs)

    @cached_property
    def _predictor(self) -> Predictor:
        if self.artifact is None:
            raise UsageError(f"there is no winner to predict with: {self.message}")
        return Predictor(self.artifact)

    @property
    def report(self) -> Path | None:
        """The path of the report, one HTML file; None if there is none."""
        return Path(self.located.local(self.status.report.uri)) if self.status.report is not None else None

    @property
    def table(self) -> str:
        """A table of all candidates with their figures, and why each was or was not chosen."""
        console = Console(width=WIDTH, record=True, quiet=True)
        console.print(candidates_table(self.status, WIDTH))
        reasons = [f"{row.name}: {row.message}" for row in self.status.candidates if row.message]
        return "\n".join([console.export_text().rstrip(), "", *reasons])

    def __str__(self) -> str:
        return f"{self.message}\n\n{self.table}"

    def _repr_html_(self) -> str:
        """The report in an iframe, so that its style does not affect the notebook."""
        if self.report is None:
            return f"<pre>{html.escape(str(self))}</pre>"
        page = html.escape(self.report.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 60em; border: 0"></iframe>'


def optimize(
    model: Any,
    evaluation: Any = None,
    *,
    max_drop: float | None = None,
    metric: str | None = None,
    target: Target = Target(),
    options: RunOptions = RunOptions(),
    **learning: Unpack[LearningItems],
) -> Result:
    """Make `model` faster, and prove on the items of `evaluation` that its accuracy drops by no more than `max_drop`.

    `model`: a path, an onnx.ModelProto, a torch.nn.Module, a torch.export.ExportedProgram, a model of transformers or Keras, or a scikit-learn
    estimator. `evaluation`: a path, an array, a dictionary of arrays by input, or a pair of one of these and labels. Without labels the original's
    answers are the truth. `metric`: a name of `data.evaluation.metric`, by default what the model's outputs look like.

    `learning`: `calibration`, as `evaluation` without labels, and `training`, as `evaluation`: with it, the model is also made smaller and trained
    (needs PyTorch). Training items that are evaluation items as well are left out.

    It blocks until the run is over, usually some minutes. Raises UsageError for arguments that do not go together. Failures of the run, such as
    a model that cannot be converted, are not raised: the result's `message` describes them.
    """
    items = RunItems.of(evaluation, **learning)
    with tempfile.TemporaryDirectory(prefix="fettle-inputs-") as temporary:
        folder = Path(temporary)
        file = written(model, items.example, folder)
        files = items.files(file.inputs, folder)
        asked = ModelOptions(
            model=file.path,
            evaluation=files["evaluation"],
            calibration=files["calibration"],
            training=files["training"],
            label_key=LABELS if items.evaluation.labels is not None else None,
            metric=metric,
            max_drop=max_drop,
            objective=options.objective,
            runtimes=target.runtimes,
            threads=target.threads,
            batch_size=target.batch_size,
        )
        (manifest,) = read(yaml.safe_dump(asked.document(file.name)), file.path, Path.cwd()).models
        located = places(manifest.spec, {}, Path(options.store))
        with PlainDisplay(Console(stderr=True, quiet=not options.progress), manifest.name) as display:
            status = _finished(model_run(manifest, located, display.update, options.measure_seconds))
        keep_result(located, manifest, status)
    return Result(status, located)


def _finished(run: LocalRun) -> OptimizedModelStatus:
    """The run's final status. The run has a separate thread, since a notebook's thread already runs an event loop.

    If it is interrupted, it first ends what it started.
    """
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="fettle-optimize", daemon=True)
    thread.start()
    work: Future[OptimizedModelStatus] = asyncio.run_coroutine_threadsafe(run.run(), loop)
    try:
        return work.result()
    except BaseException:
        work.cancel()
        asyncio.run_coroutine_threadsafe(_all_ended(), loop).result()
        raise
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _all_ended() -> None:
    """Wait until all cancelled tasks of this loop have ended."""
    own = asyncio.current_task()
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not own), return_exceptions=True)
