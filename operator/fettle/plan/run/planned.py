"""A planned candidate: the build that it needs, and why it is refused before any work, if it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fettle.api import catalog
from fettle.api.catalog_rows import StepEntry
from fettle.api.reasons import Reason
from fettle.api.recipe import OptimizeGraphStep, RecipeStep, RuntimeSettings, completed
from fettle.api.task import BuildPlan, CandidatePlan, DeviceForm, TrainingPlan
from fettle.api.training import TrainSpec
from fettle.api.vocabulary import RuntimeName, StepKind

_GRAPH = (RecipeStep(optimize_graph=OptimizeGraphStep()),)


@dataclass(frozen=True)
class Finding:
    """The result of a check: a reason from the closed list, and a message."""

    reason: Reason
    message: str


def with_notes(text: str, findings: Iterable[Finding]) -> str:
    """`text`, followed by what it waits for in brackets: 'measuring 9 candidates on cpu (Unschedulable: 0/1 nodes fit)'."""
    notes = "; ".join(dict.fromkeys(f"{finding.reason}: {finding.message}" for finding in findings))
    return f"{text} ({notes})" if notes else text


@dataclass(frozen=True)
class Execution:
    """How a candidate is run: its settings, and the form that its file must have on the device (None: any form)."""

    settings: RuntimeSettings
    form: DeviceForm | None = None


@dataclass(frozen=True)
class PlannedCandidate:
    """A planned candidate. `build` is None for the portable form and for the untouched source.

    `refusal` is set if it is known before any work that the candidate cannot be chosen.
    """

    plan: CandidatePlan
    build: BuildPlan | None = None
    refusal: Finding | None = None

    @property
    def name(self) -> str:
        """Name of the candidate, unique within its target."""
        return self.plan.name

    @property
    def steps(self) -> tuple[RecipeStep, ...]:
        """The steps that make its file."""
        return self.build.steps if self.build is not None else ()

    @property
    def family(self) -> RuntimeName:
        """The family of runtimes for which its file is built."""
        return self.build.family if self.build is not None else self.plan.runtime

    @property
    def entries(self) -> tuple[StepEntry | None, ...]:
        """The catalog's entry for each step; None if the family has no such step."""
        return tuple(catalog.step(step, self.family) for step in self.steps)

    @property
    def lossy(self) -> bool:
        """Whether its answers may differ by design, so that its accuracy has to be proved."""
        return catalog.lossy(self.steps, self.plan.settings.precision)

    @property
    def dequantizes(self) -> bool:
        """Whether it begins with a model that is not quantized, whatever the source is."""
        return bool(self.steps) and self.steps[0].dequantize is not None

    @property
    def quantizes(self) -> bool:
        """Whether a step writes int8."""
        return any(step.quantizes for step in self.steps)

    @property
    def quantizes_source(self) -> bool:
        """Whether a step writes int8 of the weights as they came, which must not be int8 already."""
        return self.quantizes and not self.dequantizes


def planned_candidate(
    recipe: str,
    runtime: RuntimeName,
    execution: Execution,
    *,
    steps: tuple[RecipeStep, ...] = (),
    family: RuntimeName | None = None,
    variant: str = "",
    train: TrainSpec | None = None,
) -> PlannedCandidate:
    """A candidate and its build, with descriptive names: `int8-onnxruntime-in-openvino`, `int8-openvino-1thread`.

    The name of a build whose last step makes the file for a device also contains its form.
    """
    made_by, form, steps = family or runtime, execution.form, completed(steps)
    if catalog.finish(made_by) is not None:  # such a step comes last, and only if a form is requested
        steps = (*_without_graph(steps), *(_GRAPH if form is not None else ()))
    if catalog.converts(made_by):  # one step makes the file, and quantizes it on the way
        steps = _without_graph(steps) or _GRAPH
    built_as = "-".join((recipe, made_by, *(form.words if form is not None else ())))
    training = TrainingPlan(spec=train or TrainSpec()) if any(map(catalog.trains, steps)) else None
    build = BuildPlan(name=built_as, family=made_by, steps=steps, training=training, form=form) if steps else None
    place = f"{runtime}" if made_by == runtime else f"{made_by}-in-{runtime}"
    name = "-".join(part for part in (recipe, place, variant) if part)
    plan = CandidatePlan(
        name=name, recipe=recipe, runtime=runtime, settings=execution.settings, build=build.name if build else None
    )
    return PlannedCandidate(plan=plan, build=build)


def _without_graph(steps: Iterable[RecipeStep]) -> tuple[RecipeStep, ...]:
    return tuple(step for step in steps if catalog.kind(step) is not StepKind.OPTIMIZE_GRAPH)
