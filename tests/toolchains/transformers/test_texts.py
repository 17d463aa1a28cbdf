"""Texts in requests: the tokens that the evaluation made of them, without transformers; bounded, and refused with what to send instead."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from tests.toolchains.optimizing import optimized
from tests.toolchains.transformers import examples
from tests.unit.optimizer.prepare.workbench import Workbench
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library
from tools.ports import free_port

from fettle.api.data import EvaluationSpec
from fettle.api.report import PrepareReport
from fettle.api.signature import Signature, Tensor
from fettle.api.source import SourceSpec
from fettle.api.task import StoredFile, StoredTokenizer
from fettle.errors import DataError
from fettle.optimizer.sources.tokenizer import Tokenizer
from fettle.preprocess.text import TextEncoder
from fettle.server.protocol import LINES, TEXT, TextExchange
from fettle.server.request import Code, InferRequest, RequestError
from fettle.server.texts import Room, Texts
from fettle.store.arrays import Array
from fettle.store.manifest import copy_artifact, put_tokenizer
from fettle.store.store import Store
from fettle.store.uris import Mounts

SAID = [
    "the film was good .",
    "The FILM was not bad at all, and not long!",
    "long " * 60,  # longer than any of the tokenizers below takes
    "",
    "  spaces\tand\nlines \u00a0 ",
    "naïve café — Straße, ΟΔΟΣ, 東京の映画、영화",
    "\0 a NUL, \ufeff a mark, \u202e and a turn \U0001f600",
    "[SEP] and <s> are tokens themselves",
    "x" * 300,
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
ROOM, ROWS = Room(body=1 << 18, tensors=1 << 26), 64
TOKENIZER = StoredTokenizer(file=StoredFile(path="tokenizer.json", sha256="0" * 64, bytes=0))  # already in its folder
BYTES_PER_BYTE = 600  # of memory, by byte of a text


def trained(kind: str) -> Library:
    """A tokenizer of the library of that kind, trained on a few texts."""
    library = Library(
        {
            "WordPiece": lambda: models.WordPiece(unk_token="[UNK]"),
            "BPE": lambda: models.BPE(),
            "Unigram": lambda: models.Unigram(),
        }[kind]()
    )
    trainer: Any
    if kind == "WordPiece":
        library.normalizer, library.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL)
    elif kind == "BPE":
        library.normalizer, library.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.ByteLevel()
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=350, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    else:
        library.normalizer, library.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]")
    library.train_from_iterator([text for text in SAID if text], trainer)
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, library.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return library


def saved(folder: Path, kind: str = "WordPiece", **options: Any) -> Path:
    """A directory with such a tokenizer, and a model's configuration."""
    asked = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    asked |= {"model_max_length": 24, "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    made = hf.PreTrainedTokenizerFast(tokenizer_object=trained(kind), **(asked | options))
    folder.mkdir(parents=True, exist_ok=True)
    made.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    return folder


@dataclass(frozen=True)
class Served:
    """The texts of a server whose artifact was made from a tokenizer."""

    texts: Texts
    signature: Signature

    @classmethod
    def of(cls, tokenizer: Tokenizer, columns: Mapping[str, Array], folder: Path) -> Served:
        """As the optimizer publishes it, and as a server reads it."""
        portable = tokenizer.portable(columns)
        store = Store.open("pvc://store", Mounts({"store": folder}))
        stored = put_tokenizer(store, portable.content, lower=portable.lower)
        store.fetch_file(stored.file, folder)
        tensors = (Tensor(name=name, dtype="INT64", shape=(-1, -1), batch_axis=0) for name in tokenizer.names)
        signature = Signature(inputs=tuple(tensors), outputs=())
        return cls(Texts(signature, stored, folder), signature)

    def decode(self, body: bytes, kind: str = LINES, parameters: str = "", room: Room = ROOM) -> InferRequest:
        return TextExchange(kind, parameters, self.texts, room).decode(body, self.signature, ROWS)


def lines(columns: Mapping[str, Array]) -> bytes:
    """Items as they are sent, and as they may lie in a file."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return b"\n".join(json.dumps(dict(zip(columns, row, strict=True))).encode() for row in rows)


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({}, None),
        ({}, 16),
        ({"padding_side": "left", "truncation_side": "left", "pad_token_type_id": 1}, None),
        ({"padding_side": "left"}, 30),
        ({"model_max_length": int(1e30)}, None),
        ({"model_input_names": ["attention_mask", "input_ids"]}, None),
    ],
    ids=["longest", "fixed", "left", "fixed, left", "without a limit", "without kinds"],
)
@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
def test_a_server_makes_the_tokens_of_the_evaluation(
    tmp_path: Path, kind: str, options: dict[str, Any], length: int | None, pairs: bool
) -> None:
    tokenizer = Tokenizer(saved(tmp_path / "model", kind, **options), length)
    columns = {"text": np.array(SAID, object)} | ({"text_pair": np.array(SAID[::-1], object)} if pairs else {})
    wanted = tokenizer.encode(columns)
    request = Served.of(tokenizer, columns, tmp_path).decode(lines(columns))
    assert request.rows == len(SAID)
    assert request.inputs.keys() == wanted.keys() == set(tokenizer.names)
    for name, array in wanted.items():
        assert request.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(request.inputs[name], array, err_msg=name)


def test_a_text_alone_is_the_whole_body_with_no_more_padding_than_it_needs(tmp_path: Path) -> None:
    tokenizer = Tokenizer(saved(tmp_path / "model", "BPE"))
    columns = {"text": np.array(SAID, object)}
    served = Served.of(tokenizer, columns, tmp_path)
    for text in (text for text in SAID if text):
        request = served.decode(text.encode(), TEXT, "; charset=UTF-8")
        for name, array in tokenizer.encode({"text": np.array([text], object)}).items():
            np.testing.assert_array_equal(request.inputs[name], array)
    ends = served.decode(b"long\n", TEXT).inputs["input_ids"], served.decode(b"long", TEXT).inputs["input_ids"]
    assert ends[0].shape[1] > ends[1].shape[1], "a newline is part of the text"


def test_texts_are_written_small_where_the_source_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "BPE")
    (folder / "modules.json").write_text("[]")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": True}))
    tokenizer, columns = Tokenizer(folder), {"text": np.array(SAID, object)}
    request = Served.of(tokenizer, columns, tmp_path).decode(lines(columns))
    np.testing.assert_array_equal(request.inputs["input_ids"], tokenizer.encode(columns)["input_ids"])
    assert request.inputs["input_ids"].shape[1] == 9


def test_a_server_needs_neither_transformers_nor_what_the_package_asks_for(tmp_path: Path) -> None:
    tokenizer, columns = Tokenizer(saved(tmp_path / "model")), {"text": np.array(SAID, object)}
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.portable(columns).content)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('transformers', 'huggingface_hub', 'torch')))\n"
        "from pathlib import Path; from fettle.preprocess.text import TextEncoder\n"
        f"encoder = TextEncoder(Path({str(tmp_path / 'tokenizer.json')!r}).read_bytes())\n"
        "print(encoder.encode(['the film was good .'])['input_ids'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == tokenizer.encode({"text": np.array([SAID[0]], object)})["input_ids"].tolist()


def prepared(bench: Workbench, texts: list[str]) -> PrepareReport:
    evaluation = EvaluationSpec(uri=bench.data("items", text=np.array(texts)))
    return bench.prepare(bench.task(source=SourceSpec(uri="pvc://claim/model"), evaluation=evaluation))


def test_a_tokenizer_in_python_is_not_published_and_a_note_says_so(bench: Workbench) -> None:
    model = examples.EXAMPLES["BertForSequenceClassification"]
    model.saved(bench.folder / "model")
    hf.ByT5Tokenizer(extra_ids=0, model_max_length=40).save_pretrained(bench.folder / "model")
    report = prepared(bench, ["abc", "de"] * 12)  # bytes, all of them below the size of its vocabulary
    assert report.tokenizer is None
    assert any("takes tokens and no texts: ByT5Tokenizer is a tokenizer in Python" in note for note in report.notes)


class Shouting(hf.PreTrainedTokenizerFast):
    """A class that changes texts before its file sees them."""

    def _encode_plus(self, text: Any, *more: Any, **options: Any) -> Any:
        return super()._encode_plus([each.upper() for each in text], *more, **options)


def test_a_class_that_does_more_than_its_file_says_is_not_published(tmp_path: Path) -> None:
    tokenizer = Tokenizer(saved(tmp_path))
    tokenizer._tokenizer = Shouting.from_pretrained(tmp_path)
    with pytest.raises(
        DataError, match="Shouting does more to texts than a file of the library tokenizers can describe"
    ):
        tokenizer.portable({"text": np.array([".", ","], object)})


def test_other_tokens_than_those_of_the_evaluation_are_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(saved(tmp_path))
    tokenizer.portable({"text": np.array(SAID, object)})
    monkeypatch.setattr(TextEncoder, "_written", lambda self, texts: [text + "." for text in texts])
    with pytest.raises(DataError, match="transformers tokenizes these texts differently"):
        tokenizer.portable({"text": np.array(SAID, object)})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    return Served.of(Tokenizer(saved(folder / "model", "BPE")), {"text": np.array(SAID, object)}, folder)


HOSTILE: dict[str, tuple[bytes, str, Code, str]] = {
    "nothing": (b"", TEXT, Code.INVALID, "expected a text"),
    "no UTF-8": (b"good \xff", TEXT, Code.INVALID, "not UTF-8: invalid start byte at byte 5"),
    "half a character": ("é".encode()[:1], TEXT, Code.INVALID, "not UTF-8: unexpected end of data at byte 0"),
    "UTF-16": ("good".encode("utf-16"), TEXT, Code.INVALID, "not UTF-8"),
    "a surrogate": (b"\xed\xa0\x80", TEXT, Code.INVALID, "not UTF-8"),
    "one character for 18": (
        "\ufdfa".encode() * 14_564,
        TEXT,
        Code.TOO_LARGE,
        "the texts have 262152 characters after NFKD; the limit is 262144",
    ),
    "a request after a mark": (b'\xef\xbb\xbf{"inputs": []}', TEXT, Code.INVALID, "valid JSON"),
    "a megabyte": (b"good " * 200_000, TEXT, Code.TOO_LARGE, "the limit is 262144 (FETTLE_SERVER_MAX_TEXT_BYTES)"),
    "a request": (b'{"inputs": []}', TEXT, Code.INVALID, "expected the inputs"),
    "no lines": (b"\n \n\r\n", LINES, Code.INVALID, "expected 1 to 64 lines with an item, found 0"),
    "too many lines": (b'{"text": "a"}\n' * 65, LINES, Code.INVALID, "expected 1 to 64 lines with an item, found 65"),
    "no JSON": (b'{"text": "a"}\ngood', LINES, Code.INVALID, "line 2 is not valid JSON"),
    "no UTF-8 in a line": (b'{"text": "\xff"}', LINES, Code.INVALID, "line 1 is not valid JSON"),
    "a surrogate in a line": (b'{"text": "\\ud800"}', LINES, Code.INVALID, "line 1 is not valid JSON"),
    "a list": (b'["good"]', LINES, Code.INVALID, 'line 1: expected an object with a "text"'),
    "a number": (b'{"text": 1}', LINES, Code.INVALID, 'line 1: "text" must be a string, found 1'),
    "nested": (b"[" * 100_000, LINES, Code.INVALID, "line 1 is not valid JSON"),
    "half of pairs": (
        b'{"text": "a", "text_pair": "b"}\n{"text": "a"}',
        LINES,
        Code.INVALID,
        "expected text_pair in all items or in none, found it in 1 of 2",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_refused_and_say_why(served: Served, name: str) -> None:
    body, kind, code, message = HOSTILE[name]
    with pytest.raises(RequestError) as raised:
        served.decode(body, kind)
    assert (raised.value.code, message in raised.value.message) == (code, True), raised.value.message


def test_a_byte_order_mark_is_no_part_of_a_text(served: Served) -> None:
    mark, line = "\ufeff".encode(), b'{"text": "good"}'
    for body, kind in ((b"good", TEXT), (line, LINES)):
        with_mark, without = served.decode(mark + body, kind), served.decode(body, kind)
        np.testing.assert_array_equal(with_mark.inputs["input_ids"], without.inputs["input_ids"])


@pytest.mark.parametrize(
    ("model", "normalizer", "text", "message"),
    [
        (models.WordLevel({"good": 0}), None, "bad", r"Missing \[UNK\] token"),
        (models.WordLevel({"good": 0}), normalizers.StripAccents(), "é", "not a char boundary"),
    ],
    ids=["an error of the library", "its panic"],
)
def test_a_text_that_the_tokenizer_cannot_encode_is_the_clients_mistake(
    tmp_path: Path, model: Any, normalizer: Any, text: str, message: str
) -> None:
    library = Library(model)
    library.enable_padding()
    if normalizer is not None:
        library.add_tokens([AddedToken("\u0301", single_word=True)])
        library.normalizer = normalizer
    library.save(str(tmp_path / "tokenizer.json"))
    signature = Signature(inputs=(Tensor(name="input_ids", dtype="INT64", shape=(-1, -1), batch_axis=0),), outputs=())
    served = Served(Texts(signature, TOKENIZER, tmp_path), signature)
    with pytest.raises(RequestError, match=f"the tokenizer cannot encode these texts: .*{message}") as raised:
        served.decode(text.encode(), TEXT)
    assert raised.value.code is Code.INVALID


def test_a_text_in_another_charset_is_refused(served: Served) -> None:
    for parameters in ("charset=latin-1", ' format=flowed; Charset="ISO-8859-1"'):
        with pytest.raises(RequestError, match="expected a text in UTF-8, found the charset") as raised:
            served.decode(b"good", TEXT, parameters)
        assert raised.value.code is Code.UNSUPPORTED


def test_a_text_without_tokens_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "BPE")
    content = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    served = Served.of(Tokenizer(folder), {"text": np.array(["good"], object)}, tmp_path)
    with pytest.raises(RequestError, match="the texts have no tokens"):
        served.decode(b'{"text": ""}')


def test_a_model_whose_items_cannot_be_stacked_takes_one_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(saved(tmp_path / "model"))
    stacked = Served.of(tokenizer, {"text": np.array(SAID, object)}, tmp_path)
    inputs = tuple(tensor.model_copy(update={"batch_axis": None}) for tensor in stacked.signature.inputs)
    alone = Served(
        Texts(Signature(inputs=inputs, outputs=()), TOKENIZER, tmp_path), Signature(inputs=inputs, outputs=())
    )
    assert alone.decode(b"good", TEXT).rows == 1
    with pytest.raises(RequestError, match="this model takes one text in a request, found 2"):
        alone.decode(b'{"text": "a"}\n{"text": "b"}')


def test_padding_is_bounded_before_it_is_made(served: Served) -> None:
    body = b"\n".join([lines({"text": np.array(["long " * 30], object)}), *[b'{"text": "a"}'] * 63])
    assert served.decode(body).inputs["input_ids"].shape == (64, 24)
    with pytest.raises(RequestError, match="64 texts of 24 tokens, padding included; the limit is 1535") as raised:
        served.decode(body, room=Room(body=1 << 18, tensors=64 * 24 * 24 - 1))
    assert raised.value.code is Code.TOO_LARGE


WORST = """
import sys, unicodedata
from pathlib import Path
from fettle.preprocess.text import TextEncoder

encoder = TextEncoder(Path(sys.argv[1]).read_bytes())


def most():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


encoder.encode(["a"])
Path("/proc/self/clear_refs").write_text("5")  # forget what was most so far
before = most()
for text in ("a", "a ", "\\0", "é", "中", "\\U0001f600", "'s", "</s>", "\\ufdfa"):
    size = max(len(text.encode()), len(unicodedata.normalize("NFKD", text)))  # as far as a request may have it
    encoder.encode([text * (262_144 // size)])
print(most() - before)
"""


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_the_memory_that_the_largest_text_takes_is_bounded(tmp_path: Path, kind: str) -> None:
    tokenizer = Tokenizer(saved(tmp_path / "model", kind))
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.portable({"text": np.array(SAID, object)}).content)
    words = [sys.executable, "-c", WORST, str(tmp_path / "tokenizer.json")]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < BYTES_PER_BYTE * ROOM.body


# ------------------------------------------------------------------------------------------------- from a directory to answers


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    body: dict[str, Any]

    @property
    def logits(self) -> Array:
        """The one output."""
        (output,) = self.body["outputs"]
        return np.array(output["data"], np.float32).reshape(output["shape"])


@dataclass(frozen=True)
class Running:
    """A server of an artifact that takes texts."""

    source: Path
    model: str
    admin: str

    def ask(self, body: bytes, kind: str = "application/json") -> Answer:
        request = urllib.request.Request(f"{self.model}/infer", body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, json.load(answer))
        except urllib.error.HTTPError as error:
            return Answer(error.code, json.load(error))

    def told(self, path: str = "") -> Any:
        with urllib.request.urlopen(f"{self.model}{path}", timeout=60) as answer:
            return json.load(answer)

    def counted(self) -> dict[str, int]:
        """Answers by code."""
        with urllib.request.urlopen(f"{self.admin}/metrics", timeout=60) as answer:
            found = re.findall(
                r'^fettle_server_requests_total\{.*code="(\d+)".*\} (\S+)$', answer.read().decode(), re.M
            )
        return {code: int(float(count)) for code, count in found}


@contextmanager
def serving(folder: Path, source: Path) -> Iterator[Running]:
    """`fettle serve` of an artifact in a folder."""
    port, grpc, management = free_port(), free_port(), free_port()
    words = [sys.executable, "-m", "fettle.cli.main", "serve", str(folder), "--name", "reviews", "--port", str(port)]
    words += ["--grpc-port", str(grpc), "--management-port", str(management)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline(), "it says when it is ready"
            yield Running(source, f"http://127.0.0.1:{port}/v2/models/reviews", f"http://127.0.0.1:{management}")
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`fettle optimize` and `fettle serve` of a directory, judged on texts."""
    folder = tmp_path_factory.mktemp("running")
    examples.EXAMPLES["BertForSequenceClassification"].saved(saved(folder / "model"))
    status = optimized(folder, "model", {"text": examples.reviews(np.random.default_rng(0))})
    store = Store.open("pvc://store", Mounts({"store": folder / "store"}))
    copy_artifact(store, status["artifacts"][0]["sha256"], folder / "winner")
    with serving(folder / "winner", folder / "model") as started:
        yield started


def test_texts_are_answered_as_their_tokens_are(running: Running) -> None:
    assert running.told()["parameters"]["tokenizer"]["file"]["path"] == "tokenizer.json"
    tokens = hf.AutoTokenizer.from_pretrained(running.source)(SAID[0])
    assert len(set(tokens["input_ids"])) > 5
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [1, len(data)], "data": data} for name, data in tokens.items()
    ]
    tensors = running.ask(json.dumps({"inputs": inputs}).encode())
    text = running.ask(SAID[0].encode(), "text/plain; charset=utf-8")
    several = running.ask(
        lines({"text": np.array(["good", SAID[0]], object), "labels": np.array([0, 1])}), "Application/X-NDJSON"
    )
    assert (tensors.status, text.status, several.status) == (200, 200, 200)
    np.testing.assert_array_equal(text.logits, tensors.logits)
    assert several.logits.shape == (2, 3)
    np.testing.assert_allclose(several.logits[1], tensors.logits[0], rtol=1e-3, atol=1e-4)


def test_hostile_requests_are_counted_once_and_the_next_good_one_is_answered(running: Running) -> None:
    for body, kind, status in (
        (b"", TEXT, 400),
        (b"\xff", TEXT, 400),
        (b"good " * 200_000, TEXT, 413),
        (b"{}", LINES, 400),
        (b"good", "text/plain; charset=latin-1", 415),
        (b"\0\0\0", TEXT, 200),
    ):
        before = running.counted()
        assert running.ask(body, kind).status == status
        after = running.counted()
        changed = {code: count - before.get(code, 0) for code, count in after.items() if count != before.get(code, 0)}
        assert changed == {str(status): 1}, body[:20]
        assert running.ask(b"good", TEXT).status == 200


def test_what_may_be_sent_is_in_the_document(running: Running) -> None:
    base = running.model.partition("/v2/")[0]
    with urllib.request.urlopen(f"{base}/openapi.json", timeout=60) as answer:
        described = json.load(answer)["paths"]["/v2/models/reviews/infer"]["post"]
    assert {TEXT, LINES} < set(described["requestBody"]["content"])
