"""An OptimizedModel from options instead of YAML: `fettle optimize model.onnx --evaluation items.npz`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from fettle.api.base import API_VERSION
from fettle.api.catalog import DEFAULT_RUNTIMES
from fettle.api.vocabulary import Metric, Objective, RuntimeName
from fettle.cli.local.manifests import KIND
from fettle.errors import UsageError
from fettle.runtimes.cpu import usable_cores

TARGET = "cpu"
MANIFESTS = (".yaml", ".yml")


@dataclass(frozen=True)
class ModelOptions:
    """The options of a model on the command line. `model` is None if a manifest is used instead."""

    model: str | None
    evaluation: str | None
    calibration: str | None
    training: str | None
    label_key: str | None
    metric: str | None
    max_drop: float | None
    objective: str | None
    runtimes: tuple[str, ...]
    threads: int | None
    batch_size: int | None
    signature: str | None = None
    trusted: bool | None = None
    inputs: tuple[str, ...] = ()
    factory: str | None = None
    factory_code: str | None = None

    @property
    def given(self) -> list[str]:
        """The options that were given, as they are written."""
        options = {"runtimes": "--runtime", "inputs": "--input"}
        told = (name for name, value in vars(self).items() if name != "model" and value not in (None, ()))
        return [options.get(name, "--" + name.replace("_", "-")) for name in told]

    @property
    def paths(self) -> tuple[str | None, ...]:
        """The files and folders that it names."""
        return self.model, self.evaluation, self.calibration, self.training, self.factory_code

    def document(self, name: str | None = None) -> dict[str, Any]:
        """The manifest, called `name` or after the model's file. Raises UsageError if the options do not go together."""
        if self.model is None:
            example = "fettle optimize model.onnx --evaluation items.npz"
            raise UsageError(f"no model given: name a file, as in `{example}`, or a manifest with -f FILE")
        if self.model.endswith(MANIFESTS):
            raise UsageError(f"{self.model} looks like a manifest: fettle optimize -f {self.model}")
        for path in self.paths:
            if path is not None and "://" not in path and not Path(path).expanduser().exists():
                raise UsageError(f"{path} does not exist")
        if self.evaluation is None and (self.label_key or self.metric):
            option = "--label-key" if self.label_key else "--metric"
            raise UsageError(f"{option} needs evaluation items: add --evaluation FILE")
        evaluation = (
            {"uri": self.evaluation, "labelKey": self.label_key, "metric": self.metric or Metric.AUTO.value}
            if self.evaluation
            else None
        )
        calibration = {"uri": self.calibration} if self.calibration else None
        training = {"uri": self.training, "labelKey": self.label_key} if self.training else None
        target = {
            "name": TARGET,
            "runtimes": list(self.runtimes or (name.value for name in DEFAULT_RUNTIMES)),
            "threads": self.threads or usable_cores(),
            "batchSizes": [self.batch_size] if self.batch_size else None,
        }
        constraints = {"accuracy": {"maxDrop": self.max_drop}} if self.max_drop is not None else None
        spec = {
            "source": self._source(),
            "data": {"calibration": calibration, "evaluation": evaluation, "training": training},
            "targets": [target],
            "objective": self.objective,
            "constraints": constraints,
        }
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": slug(name) if name else name_of(self.model)},
            "spec": _present(spec),
        }

    def _source(self) -> dict[str, Any]:
        """`spec.source`. Raises UsageError."""
        if (self.factory is None) != (self.factory_code is None):
            raise UsageError(
                "--factory MODULE:CALLABLE and --factory-code PATH belong together: the callable, and the code that it is in"
            )
        factory = {"callable": self.factory, "uri": self.factory_code}
        return {
            "uri": self.model,
            "signature": self.signature,
            "trusted": self.trusted or None,
            "factory": factory if self.factory else None,
            "inputs": [_input(text) for text in self.inputs] or None,
        }


def _input(text: str) -> dict[str, Any]:
    """An input from `NAME:DTYPE:SIZES`. Raises UsageError."""
    name, dtype, sizes, *_ = *text.rsplit(":", 2), "", ""
    if not (name and dtype):
        raise UsageError(f"--input {text}: expected NAME:DTYPE:SIZES, such as image:FP32:N,3,224,224 (N is the batch)")
    shape = [int(size) if re.fullmatch(r"-?\d+", size) else size for size in sizes.split(",") if size]
    return {"name": name, "dtype": dtype, "shape": shape}


# What says which version of something is meant, and is no part of its name.
_VERSION = {"oci": "(?<=[^/])[:@][^/]+", "mlflow": "(?<=[^/])(/[0-9]+|@[^/]+)"}


def name_of(model: str) -> str:
    """A name that Kubernetes allows, from the model's file: 'My Model.v2.onnx' -> 'my-model-v2'. A file called 'model' gets its folder's name,
    and a model of a hub or a registry its repository's name, without the revision."""
    scheme, remote, _ = model.partition("://")
    path = Path(re.sub(_VERSION.get(scheme, "@[^/]*"), "", model)) if remote else Path(model).expanduser().resolve()
    stem = path.stem if path.suffix else path.name
    if stem.lower() == "model":
        stem = path.parent.name or stem
    return slug(stem)


def slug(text: str) -> str:
    """`text` as a name that Kubernetes allows."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"


def _present(node: Any) -> Any:
    """`node` without keys that have no value."""
    if isinstance(node, list):
        return [_present(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    present = {key: _present(value) for key, value in node.items() if value is not None}
    return {key: value for key, value in present.items() if value != {}}


def gathered(name: str, kind: type[Any], *decorators: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that turns these options of a command into one argument `name`, a `kind` with a field for each."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            told = {field.name: given.pop(field.name) for field in fields(kind)}
            command(**{name: kind(**told)}, **given)

        wrapped: Callable[..., None] = run
        for decorator in reversed(decorators):
            wrapped = decorator(wrapped)
        return wrapped

    return decorate


model_options = gathered(
    "options",
    ModelOptions,
    click.argument("model", metavar="[MODEL]", required=False),
    click.option(
        "--evaluation",
        metavar="FILE",
        help="Evaluation items, with labels if you have them: .npz, .parquet or .jsonl.",
    ),
    click.option(
        "--label-key",
        metavar="KEY",
        help="Name of the label array in the evaluation file [default: labels]. Without labels, candidates are compared with the original.",
    ),
    click.option(
        "--metric",
        type=click.Choice([metric.value for metric in Metric]),
        help="How answers are scored [default: Auto, chosen by the model's outputs].",
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(0, 1),
        metavar="X",
        help="Accuracy that may be lost, from 0 to 1: 0.01 is one percentage point.",
    ),
    click.option(
        "--calibration",
        metavar="FILE",
        help="Items to calibrate int8 [default: a fifth of the evaluation items].",
    ),
    click.option(
        "--training",
        metavar="FILE",
        help="Training items, different from the evaluation items. With them, pruning is tried too.",
    ),
    click.option(
        "--objective",
        type=click.Choice([objective.value for objective in Objective]),
        help="What to optimize for [default: Latency].",
    ),
    click.option(
        "--runtime",
        "runtimes",
        multiple=True,
        type=click.Choice([name.value for name in RuntimeName]),
        help=f"Runtime that may serve the model; may be repeated [default: {', '.join(DEFAULT_RUNTIMES)}].",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 256),
        metavar="N",
        help="Threads for one inference [default: the cores of this machine].",
    ),
    click.option(
        "--batch-size", type=click.IntRange(1, 4096), metavar="N", help="Items in one inference [default: 1]."
    ),
    click.option("--signature", metavar="NAME", help="Signature of a SavedModel to use [default: serving_default]."),
    click.option(
        "--trusted",
        is_flag=True,
        default=None,
        help="Load a pickle, or a Keras model that contains code, or call a factory. Only for what you made yourself: its code will run.",
    ),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME:DTYPE:SIZES",
        help="Input that the file does not describe, such as image:FP32:N,3,224,224 (N is the batch); may be repeated.",
    ),
    click.option(
        "--factory",
        metavar="MODULE:CALLABLE",
        help="Callable that returns the PyTorch module, if MODEL contains only weights. Needs --factory-code and --trusted.",
    ),
    click.option(
        "--factory-code", metavar="PATH", help="Wheel, folder or Python file that contains the MODULE of --factory."
    ),
)
