"""scikit-learn's estimators in ONNX: which inputs one has, its conversion by skl2onnx, and its own answers.

One place for estimators from a file and for those that `fettle.optimize` is given in memory. scikit-learn records how many columns an
estimator was fitted with, and their names where they had any, but not what they hold: columns that it encodes as text are text, all others
are numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from fettle.api.reasons import Reason
from fettle.api.source import InputSpec
from fettle.errors import SourceError
from fettle.runtimes.base import Array

TABLE = "X"  # one matrix with all columns
OPSETS = {"": 18, "ai.onnx.ml": 3}
SECOND = ("predict_proba", "decision_function", "transform")  # what an estimator that predicts answers besides


@dataclass(frozen=True)
class Column:
    """An input of an estimator: the whole table of `width` columns, or where `width` is None one column, a value for each item."""

    name: str
    dtype: str = "FP32"
    width: int | None = None


def columns(estimator: Any, specs: Mapping[str, InputSpec], available: Collection[str]) -> tuple[Column, ...]:
    """The inputs of a fitted estimator. `available`: names of what the items hold.

    A table of numbers is one input, X. An estimator that was fitted with named columns has an input for each of them where some hold text,
    or where the items or `specs` name them. Raises SourceError (UnsupportedModel) for an estimator that was not fitted.
    """
    named = getattr(estimator, "feature_names_in_", None)
    count = getattr(estimator, "n_features_in_", None)
    spec = specs.get(TABLE)
    if count is None and spec is not None and spec.shape is not None and isinstance(spec.shape[-1], int):
        count = spec.shape[-1]
    text = _text(estimator, range(count) if count is not None else None)
    if count is None and text is not None:
        message = (
            f"{type(estimator).__name__} does not record the number of columns that it was fitted on: fit it, or set "
            f"source.inputs: [{{name: {TABLE}, shape: [N, 30]}}]"
        )
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    if text is None or count is None:  # a vectorizer of texts: one text for each item
        return _as_told((Column(TABLE, "BYTES"),), specs)
    names = [str(name) for name in named] if named is not None else [f"x{index}" for index in range(count)]
    mixed = 0 < len(text) < count
    if not mixed and not (named is not None and set(names) & (set(available) | set(specs))):
        return _as_told((Column(TABLE, "BYTES" if text else "FP32", count),), specs)
    return _as_told((Column(name, "BYTES" if index in text else "FP32") for index, name in enumerate(names)), specs)


def _as_told(made: Iterable[Column], specs: Mapping[str, InputSpec]) -> tuple[Column, ...]:
    """With the data types that `source.inputs` gives."""
    told = []
    for column in made:
        spec = specs.get(column.name)
        told.append(replace(column, dtype=spec.dtype) if spec is not None and spec.dtype is not None else column)
    return tuple(told)


def _text(step: Any, places: Sequence[int] | None) -> set[int] | None:
    """Which of the columns at `places` a fitted estimator reads as text; None for one that reads one column of texts, a text for each item."""
    if hasattr(step, "steps"):  # a pipeline: what its first step reads
        first = next((inner for _, inner in step.steps if inner not in (None, "passthrough")), None)
        return _text(first, places)
    if hasattr(step, "transformer_list"):  # a union: what any of its parts reads
        return _joined(_text(inner, places) for _, inner in step.transformer_list if not isinstance(inner, str))
    if hasattr(step, "_transformer_to_input_indices"):  # ColumnTransformer: each of its parts reads columns of its own
        indices = step._transformer_to_input_indices
        parts = ((inner, indices.get(name, ())) for name, inner, _ in step.transformers_ if not isinstance(inner, str))
        found = [(read, _text(inner, read)) for inner, read in parts]
        return {place for read, text in found for place in (read if text is None else text)}
    if hasattr(step, "build_analyzer"):  # CountVectorizer and its kin
        return None
    known = getattr(step, "categories_", None)
    if known is not None and places is not None:  # encoders: the categories of each column
        return {place for place, values in zip(places, known, strict=False) if np.asarray(values).dtype.kind in "OUS"}
    filled = getattr(step, "statistics_", None)
    if filled is not None and places is not None and np.asarray(filled).dtype.kind in "OUS":
        return set(places)
    return set()


def _joined(parts: Iterable[set[int] | None]) -> set[int] | None:
    known = list(parts)
    if any(part is None for part in known):
        return None
    return {place for part in known if part is not None for place in part}


def converted(estimator: Any, inputs: Sequence[Column]) -> onnx.ModelProto:
    """A fitted estimator in ONNX. Probabilities are one tensor, and so are scores. Raises whatever its converters raise."""
    from skl2onnx import to_onnx
    from sklearn.preprocessing import StandardScaler

    _register_boosted_trees()
    types = [(column.name, _type(column)) for column in inputs]
    # As scikit-learn scales: multiplied by the inverse, a value next to a threshold of a tree may take another branch.
    scaling = {StandardScaler: {"div": "div"}}

    def made(options: dict[Any, dict[str, Any]]) -> onnx.ModelProto:
        with _ints_for_bools():
            model = to_onnx(estimator, initial_types=types, options={**scaling, **options}, target_opset=OPSETS)
        return _finished(estimator, model, inputs)

    *first, last = _options(estimator)
    for options in first:
        with suppress(NameError):  # skl2onnx raises it for an option that this estimator does not have
            return made(options)
    return made(last)


def _finished(estimator: Any, model: onnx.ModelProto, inputs: Sequence[Column]) -> onnx.ModelProto:
    from sklearn.svm import SVC, NuSVC

    final = _final(estimator)
    if isinstance(final, SVC | NuSVC) and len(final.classes_) == 2 and not hasattr(final, "predict_proba"):
        _turn_scores(model.graph)
    for node in model.graph.node:
        if node.op_type == "StringNormalizer":
            # The default, en_US, is not installed in every image; this one is part of the C library.
            node.attribute.append(helper.make_attribute("locale", "C.UTF-8"))
    return one_value_per_item(model, [column.name for column in inputs if column.width is None])


def _final(estimator: Any) -> Any:
    """The estimator that answers: of a pipeline, its last step."""
    return estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator


def _turn_scores(graph: onnx.GraphProto) -> None:
    """Of an SVC of two classes skl2onnx writes the second's score first."""
    scores = graph.output[1].name
    for node in graph.node:
        node.output[:] = ["turned" if name == scores else name for name in node.output]
    order = helper.make_tensor("second_first", TensorProto.INT64, [2], [1, 0])
    graph.initializer.append(order)
    graph.node.append(helper.make_node("Gather", ["turned", order.name], [scores], axis=1, name="turn_scores"))


def _options(estimator: Any) -> list[dict[Any, dict[str, Any]]]:
    """What may be asked of skl2onnx for an estimator, the best first: which of it applies depends on the estimator's class."""
    tensor = {id(estimator): {"zipmap": False}}
    if hasattr(estimator, "predict_proba"):
        return [tensor]
    if hasattr(estimator, "predict") and hasattr(estimator, "decision_function"):
        return [tensor, {id(_final(estimator)): {"raw_scores": True}}, {}]
    return [{}]


@contextmanager
def _ints_for_bools() -> Iterator[None]:
    """skl2onnx hands booleans to attributes that are integers, which protobuf takes no more."""
    before = helper.make_attribute

    def make_attribute(key: str, value: Any, *more: Any, **named: Any) -> Any:
        if isinstance(value, list) and any(isinstance(one, bool | np.bool_) for one in value):
            value = [int(one) for one in value]
        return before(key, value, *more, **named)

    helper.make_attribute = make_attribute
    try:
        yield
    finally:
        helper.make_attribute = before


def _type(column: Column) -> Any:
    from skl2onnx.common import data_types

    kinds = {
        "BYTES": data_types.StringTensorType,
        "BOOL": data_types.BooleanTensorType,
        "FP64": data_types.DoubleTensorType,
        "INT32": data_types.Int32TensorType,
        "INT64": data_types.Int64TensorType,
    }
    return kinds.get(column.dtype, data_types.FloatTensorType)([None, 1 if column.width is None else column.width])


def one_value_per_item(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """`model`, in which the inputs of `names`, columns `[N, 1]`, are `[N]`: a column of a file of items has one value for each."""
    if not names:
        return model
    changed = deepcopy(model)
    graph = changed.graph
    column = helper.make_tensor("as_a_column", TensorProto.INT64, [2], [-1, 1])
    graph.initializer.append(column)
    for value in graph.input:
        if value.name in names:
            inner = f"{value.name}_as_a_column"
            for node in graph.node:
                node.input[:] = [inner if name == value.name else name for name in node.input]
            graph.node.insert(0, helper.make_node("Reshape", [value.name, column.name], [inner], name=inner))
            value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, ["N"]))
    return changed


def _register_boosted_trees() -> None:
    """Tell skl2onnx how the boosted trees that are installed are converted where they are a step of a pipeline."""
    from importlib.util import find_spec

    if find_spec("onnxmltools") is None:
        return
    from skl2onnx import update_registered_converter
    from skl2onnx.common import shape_calculator as shapes

    kinds: list[tuple[str, str, str]] = [
        ("xgboost", "XGBClassifier", "XGBRegressor"),
        ("lightgbm", "LGBMClassifier", "LGBMRegressor"),
    ]
    for library, classifier, regressor in kinds:
        if find_spec(library) is None:
            continue
        module = __import__(library)
        convert = _converter_of(library)
        options = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
        update_registered_converter(
            getattr(module, classifier),
            f"{library}{classifier}",
            shapes.calculate_linear_classifier_output_shapes,
            convert,
            options=options,
        )
        update_registered_converter(
            getattr(module, regressor),
            f"{library}{regressor}",
            shapes.calculate_linear_regressor_output_shapes,
            convert,
        )


def _converter_of(library: str) -> Any:
    if library == "xgboost":
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost

        return convert_xgboost
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

    return convert_lightgbm


@dataclass(frozen=True)
class FittedEstimator:
    """A fitted estimator and the inputs that it has in ONNX."""

    estimator: Any
    inputs: tuple[Column, ...]

    def to_onnx(self) -> onnx.ModelProto:
        """See `LoadedModel.to_onnx`."""
        return converted(self.estimator, self.inputs)

    def run(self, given: Mapping[str, Array]) -> Sequence[Array]:
        """scikit-learn's own answers: what it predicts, then its probabilities, scores or distances; or what it transforms to."""
        table = self._table(given)
        if not hasattr(self.estimator, "predict"):
            return [_dense(self.estimator.transform(table))]
        answers = [np.asarray(self.estimator.predict(table))]
        second = next((name for name in SECOND if hasattr(self.estimator, name)), None)
        if second is None:
            return answers
        scores = _dense(getattr(self.estimator, second)(table))
        # Of two classes scikit-learn answers one score, and ONNX one for each.
        return [*answers, np.column_stack([-scores, scores]) if scores.ndim == 1 and self._classifies else scores]

    @property
    def _classifies(self) -> bool:
        return hasattr(self.estimator, "classes_")

    def _table(self, given: Mapping[str, Array]) -> Any:
        """The inputs as the estimator was fitted with them."""
        only = self.inputs[0]
        if len(self.inputs) == 1 and only.name == TABLE:
            return given[TABLE]
        if getattr(self.estimator, "feature_names_in_", None) is None:
            values = np.empty((len(given[only.name]), len(self.inputs)), dtype=object)
            for place, column in enumerate(self.inputs):
                values[:, place] = given[column.name]
            return values
        import pandas

        return pandas.DataFrame({column.name: given[column.name] for column in self.inputs})


def _dense(answer: Any) -> Array:
    if isinstance(answer, list):
        names = "several outputs with probabilities of their own"
        raise SourceError(f"estimators with {names} are not supported", reason=Reason.UNSUPPORTED_MODEL)
    return np.asarray(answer.toarray() if hasattr(answer, "toarray") else answer)
