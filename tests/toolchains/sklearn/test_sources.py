"""Models of scikit-learn and of boosted trees: prepared, and answering as their own framework does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.toolchains.sklearn import examples
from tests.toolchains.sklearn.examples import Example
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.recipe import RuntimeSettings
from fettle.api.source import SourceSpec
from fettle.api.vocabulary import Basis, FormatName, RuntimeName
from fettle.runtimes import base

EXAMPLES = (
    *((FormatName.SCIKIT_LEARN, make) for make in examples.SCIKIT_LEARN),
    *((FormatName.XGBOOST, make) for make in examples.XGBOOST),
    *((FormatName.LIGHTGBM, make) for make in examples.LIGHTGBM),
    *((FormatName.CATBOOST, make) for make in examples.CATBOOST),
)


@pytest.mark.parametrize(("format", "make"), EXAMPLES, ids=[make.__name__ for _, make in EXAMPLES])
def test_the_portable_form_answers_as_the_framework_does(
    bench: Workbench, format: FormatName, make: Callable[[Path], Example]
) -> None:
    example = make(bench.folder)
    source = SourceSpec(uri=f"pvc://claim/{example.file}", trusted=example.trusted)
    evaluation = EvaluationSpec(uri=bench.data("items", **example.items))
    report = bench.prepare(bench.task(source=source, evaluation=evaluation))
    assert (report.source.format, report.basis) == (format, Basis.PORTABLE_FORM)
    assert report.signature.batchable
    assert [tensor.name for tensor in report.signature.inputs] == list(example.items)
    entry = bench.store.fetch_model(report.portable, bench.folder / "portable")
    session = base.get(RuntimeName.ONNXRUNTIME).load(entry, RuntimeSettings(threads=1), report.signature)
    found = session.infer(
        {name: items.astype(object) if items.dtype.kind == "U" else items for name, items in example.items.items()}
    )
    for name, wanted in example.answers.items():
        if wanted.dtype.kind in "OU":
            assert found[name].tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(found[name].astype(np.float64), wanted, rtol=1e-3, atol=1e-4)
