"""A claim with a trained net, its data, and what training in it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from tests.data import trainable
from tests.probed_once import probed_once
from torch import nn

from fettle.api.data import DataSpec, EvaluationSpec, TrainingSpec
from fettle.api.recipe import RecipeStep
from fettle.api.report import BuildReport, PrepareReport
from fettle.api.source import SourceSpec
from fettle.api.task import BuildPlan, BuildTask, PrepareTask, StoredModel, TrainingPlan
from fettle.api.training import TrainSpec
from fettle.api.vocabulary import Augmentation, Metric, RuntimeName
from fettle.optimizer import build, stage
from fettle.store.store import Store
from fettle.store.uris import Mounts


@dataclass(frozen=True)
class Course:
    """A claim `claim` with `model.pt2`, `training.npz` and `evaluation.npz`, prepared."""

    folder: Path
    prepared: PrepareReport
    evaluation: EvaluationSpec

    @classmethod
    def of(
        cls,
        folder: Path,
        module: nn.Module | None = None,
        *,
        uri: str = "model.pt2",
        source: SourceSpec | None = None,
        labelled: bool = True,
        judged: bool = True,
        builds: tuple[BuildPlan, ...] = (),
    ) -> Course:
        """Prepare `module`, or the source that lies at `uri` or that `source` says, for `builds`.

        `judged`: by labels, which the original has to know.
        """
        for name, items in trainable.digits().items():
            given = items if labelled or name == "evaluation" else {"image": items["image"]}
            np.savez(folder / f"{name}.npz", **given)  # type: ignore[arg-type]
        if module is not None:
            trainable.save(module, folder / uri)
        metric = Metric.ACCURACY if judged else Metric.AGREEMENT
        evaluation = EvaluationSpec(uri="pvc://claim/evaluation.npz", metric=metric)
        data = DataSpec(evaluation=evaluation, training=TrainingSpec(uri="pvc://claim/training.npz"))
        told = source or SourceSpec(uri=f"pvc://claim/{uri}")
        task = PrepareTask(store="pvc://claim/store", source=told, data=data, builds=builds)
        with probed_once():
            report = stage.run(task, Mounts({"claim": folder}))
        assert isinstance(report, PrepareReport)
        return cls(folder, report, evaluation)

    @property
    def store(self) -> Store:
        """The store in the claim."""
        return Store.open("pvc://claim/store", Mounts({"claim": self.folder}))

    def task(self, *documents: dict[str, Any], augment: Sequence[Augmentation] = (), **train: Any) -> BuildTask:
        """The task of the first segment of a recipe; `train` as in a manifest."""
        plan = BuildPlan(
            name="lean-onnxruntime",
            family=RuntimeName.ONNXRUNTIME,
            steps=tuple(RecipeStep.model_validate(document) for document in documents),
            training=TrainingPlan(
                spec=TrainSpec.model_validate(train), evaluation=self.evaluation, augment=tuple(augment)
            ),
        )
        return BuildTask(
            store="pvc://claim/store",
            plan=plan.segments[0],
            cache_key="0" * 64,
            portable=self.prepared.portable,
            signature=self.prepared.signature,
            calibration=self.prepared.calibration,
            evaluation=self.evaluation,
            original=self.prepared.teacher,
            training=self.prepared.training,
        )

    def build(self, *documents: dict[str, Any], **train: Any) -> BuildReport:
        """What that task answers; no later one goes on from where it came."""
        report = build.run(self.task(*documents, **train), self.store)
        build.forget_checkpoints(self.store, report.cache_key)
        return report

    def onnx(self, model: StoredModel) -> onnx.ModelProto:
        """A stored model."""
        loaded: onnx.ModelProto = onnx.load(str(self.path(model)))
        return loaded

    def path(self, model: StoredModel) -> Path:
        """Its file."""
        return self.store.fetch_model(model, self.folder / "fetched" / model.digest[:12])

    def accuracy(self, model: StoredModel) -> float:
        """Share of the evaluation items that it knows."""
        items = trainable.digits()["evaluation"]
        session = onnxruntime.InferenceSession(str(self.path(model)))
        answers = session.run(None, {"image": items["image"]})[0]
        return float((answers.argmax(1) == items["labels"]).mean())
