"""Images in requests: prepared as the evaluation data was, bounded, and refused with what to send instead."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from tests.docs.pages import commands
from tests.unit.server.serving import Server, every_type_model
from tools.serving import ServerProcess, open_store, saved
from tools.serving import publish as publish_model

from fettle.api.data import PreprocessSpec
from fettle.api.signature import Signature, Tensor
from fettle.optimizer.data.columns import ReadRequest
from fettle.optimizer.data.images import read_images
from fettle.runtimes.base import Array
from fettle.server.model import load, not_installed
from fettle.server.openapi import document
from fettle.server.pictures import MOST_SCANS, Pictures
from fettle.server.request import Code, RequestError
from fettle.server.settings import ServerSettings
from fettle.store.manifest import copy_artifact

SPEC = PreprocessSpec(crop=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
JPEG, PNG = "image/jpeg", "image/png"
MOST = 1 << 20  # pixels
GUIDE = Path("docs/guides/requests.md")


def signature(*shape: int, dtype: str = "FP32", axis: int | None = 0) -> Signature:
    """A model that answers the picture it is given."""
    x, y = (Tensor(name=name, dtype=dtype, shape=shape, batch_axis=axis) for name in "xy")
    return Signature(inputs=(x,), outputs=(y,))


PHOTOS = signature(-1, 3, 16, 16)


class Photos(ServerProcess):
    """A server of such a model."""

    def __init__(self, root: Path, **settings: object) -> None:
        store = open_store(root / "store")
        sha256 = publish_model(store, saved(every_type_model(PHOTOS), root), PHOTOS, preprocess=SPEC)
        told = {"model": "digits", "revision": "abc", "max_image_pixels": MOST, **settings}
        super().__init__(root / "store", sha256, root / "model", **told)

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"http://127.0.0.1:{self.port}/v2/models/digits/infer"

    def ask(self, picture: bytes, kind: str = JPEG) -> httpx.Response:
        """The answer to a picture."""
        return httpx.post(self.url, content=picture, headers={"Content-Type": kind}, timeout=60)

    def counted(self) -> dict[str, int]:
        """Answers by code."""
        lines = httpx.get(f"{self.admin}/metrics").text.splitlines()
        found = re.findall(r'^fettle_server_requests_total\{.*code="(\d+)".*\} ([\d.e+]+)$', "\n".join(lines), re.M)
        return {code: int(float(count)) for code, count in found}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Photos]:
    started = Photos(tmp_path_factory.mktemp("server"))
    yield started
    started.stop()


def photo(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A picture with something in every corner."""
    noise = np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def file(image: Image.Image, kind: str = JPEG, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind.partition("/")[2].upper(), **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG of grey pixels that says that it is so large."""
    head = width.to_bytes(4) + height.to_bytes(4) + bytes((8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


def as_evaluated(
    folder: Path, name: str, content: bytes, told: Signature = PHOTOS, spec: PreprocessSpec = SPEC
) -> Array:
    """The item that `data.evaluation` makes of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    wanted = ReadRequest("here", {"x": told.inputs[0].dtype}, None, None)
    return np.asarray(read_images(LocalFileSystem(), str(folder), wanted, told, spec).arrays["x"])


def turned() -> bytes:
    """A photograph of a camera that was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(photo(), exif=exif)


@pytest.mark.parametrize(
    ("name", "kind", "content"),
    [
        ("colours.jpg", JPEG, file(photo())),
        ("progressive.jpg", JPEG, file(photo(), progressive=True)),
        ("turned.jpg", JPEG, turned()),
        ("grey.jpg", JPEG, file(photo(mode="L"))),
        ("colours.png", PNG, file(photo(), PNG)),
        ("palette.png", PNG, file(photo(mode="P"), PNG)),
        ("opaque.png", PNG, file(photo(mode="RGBA"), PNG)),
        ("deep.png", PNG, file(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), PNG)),
    ],
)
def test_the_model_is_given_what_the_evaluation_data_would_have_been(
    server: Photos, tmp_path: Path, name: str, kind: str, content: bytes
) -> None:
    answer = server.ask(content, kind)
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    expected = as_evaluated(tmp_path / "items", name, content)
    assert output["shape"] == [1, 3, 16, 16]
    assert np.array_equal(np.array(output["data"], np.float32), expected.reshape(-1))


@pytest.mark.parametrize(
    ("told", "spec"),
    [
        (signature(-1, 8, 8, 3, dtype="UINT8"), PreprocessSpec(layout="NHWC", color="BGR")),
        (signature(1, 1, 8, 8, axis=None), PreprocessSpec(color="Grayscale")),
        (signature(3, 8, 8, axis=None), PreprocessSpec()),
        (signature(-1, 3, 8, 8, dtype="FP16"), PreprocessSpec(std=(1 / 255,))),
        (signature(-1, 3, -1, -1), PreprocessSpec(width=12, height=6)),
    ],
    ids=["bytes, channels last", "no batch", "no axis for one", "half precision", "any size"],
)
def test_every_form_of_input_is_given_the_same_item(tmp_path: Path, told: Signature, spec: PreprocessSpec) -> None:
    content = file(photo(), PNG)
    made = Pictures(told, spec).inputs(content, PNG, MOST)["x"]
    expected = as_evaluated(tmp_path / "items", "one.png", content, told, spec)
    assert made.dtype == expected.dtype and made.size == expected.size
    assert len(made.shape) == len(told.inputs[0].shape)
    assert np.array_equal(made.reshape(-1), expected.reshape(-1))


def broken() -> dict[str, tuple[bytes, str, int, str]]:
    """Name -> what is sent, as what, the status of the answer and what it says."""
    jpeg, plain = file(photo()), file(photo(), PNG)
    flipped = bytearray(plain)
    flipped[29] ^= 255  # the checksum of its head
    empty = b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4)
    pixels = zlib.compress(bytes(101 * 100), 9)
    return {
        "a truncated jpeg": (jpeg[: len(jpeg) // 2], JPEG, 400, "the image is not a readable image (JPEG)"),
        "a truncated png": (plain[: len(plain) // 2], PNG, 400, "the image is not a readable image (PNG)"),
        "a damaged png": (bytes(flipped), PNG, 400, "the image is not a readable image (PNG)"),
        "a png that is called a jpeg": (plain, JPEG, 400, "its format was not recognized"),
        "a jpeg that is called a png": (jpeg, PNG, 400, "its format was not recognized"),
        "nothing": (b"", PNG, 400, "its format was not recognized"),
        "a request in JSON": (b'{"inputs": []}', JPEG, 400, "its format was not recognized"),
        "printers' colours": (file(photo(mode="CMYK")), JPEG, 400, "or send the values as a tensor"),
        "a bomb": (
            png(30_000, 30_000, chunk(b"IDAT", zlib.compress(bytes(1 << 20)))),
            PNG,
            413,
            "the limit is 1048576",
        ),
        "a smaller bomb": (file(Image.new("1", (1100, 1100)), PNG), PNG, 413, "1100 x 1100 pixels: the limit is"),
        "a strip": (file(Image.new("L", (1, 9000)), PNG), PNG, 413, "the limit is 1048576"),
        "no pixel": (png(0, 0), PNG, 400, "the image"),
        "scans without end": (jpeg[:-2] + b"\xff\xda" * (MOST_SCANS + 1), JPEG, 400, "scans"),
        "empty chunks": (png(100, 100, empty * 1_000, chunk(b"IDAT", pixels)), PNG, 200, "outputs"),
        "a compressed image": (plain, "image/webp", 415, "expected an image of type image/jpeg or image/png"),
        "an animation": (plain, "image/gif", 415, "expected an image of type"),
    }


@pytest.mark.parametrize("name", broken())
def test_a_hostile_picture_is_a_clear_error_that_is_counted_once_and_the_next_good_one_is_answered(
    server: Photos, name: str
) -> None:
    content, kind, status, message = broken()[name]
    before = server.counted()
    answer = server.ask(content, kind)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text
    after = server.counted()
    assert {code: count - before.get(code, 0) for code, count in after.items()} == {
        code: int(code == str(status)) for code in after
    }
    assert server.ask(file(photo())).status_code == 200


def test_the_media_type_may_be_written_in_any_case_and_with_parameters(server: Photos) -> None:
    assert server.ask(file(photo()), "Image/JPEG; q=1").status_code == 200


def test_the_other_forms_of_requests_are_as_they_were(server: Photos) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": [0.5] * 768}
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        answer = httpx.post(server.url, json={"inputs": [tensor]}, headers={"Content-Type": kind})
        assert answer.status_code == 200


def test_the_line_of_the_guide_works(server: Photos, tmp_path: Path) -> None:
    (words,) = [words for _, words in commands(GUIDE) if "@photo.jpg" in words]
    (tmp_path / "photo.jpg").write_bytes(file(photo()))
    line = [word.replace("localhost:8080", f"127.0.0.1:{server.port}") for word in words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert '"model_name":"digits"' in done.stdout and '"shape":[1,3,16,16]' in done.stdout


def test_clients_are_told_how_pictures_become_inputs_and_that_they_may_send_them(server: Photos) -> None:
    told = httpx.get(server.url.removesuffix("/infer")).json()
    assert PreprocessSpec.model_validate(told["parameters"]["preprocess"]) == SPEC
    described = httpx.get(f"http://127.0.0.1:{server.port}/openapi.json").json()
    asked = described["paths"]["/v2/models/digits/infer"]["post"]["requestBody"]["content"]
    assert {JPEG, PNG} < set(asked)
    plain = document(ServerSettings(model="digits"), PHOTOS)["paths"]["/v2/models/digits/infer"]["post"]
    assert not {JPEG, PNG} & set(plain["requestBody"]["content"])


def test_schemathesis_finds_nothing_where_pictures_are_taken(server: Photos, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"http://127.0.0.1:{server.port}/openapi.json",
        "--no-color",
    ]
    options = ["--max-examples", "15", "--generation-deterministic", "--include-path-regex", "models/digits/infer$"]
    chosen = ["--phases", "coverage,fuzzing", "--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run([*command, *options, *chosen], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_model_without_preprocess_says_what_to_send_instead(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        answer = httpx.post(f"{server.url}/infer", content=file(photo()), headers={"Content-Type": JPEG})
        assert answer.status_code == 415
        assert "send its inputs as JSON or as binary tensors" in answer.json()["error"]
        assert answer.headers["connection"] == "close", "the body was not read"
        assert "preprocess" not in httpx.get(server.url).json()["parameters"]
    finally:
        server.stop()


def test_a_machine_without_the_library_serves_tensors_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path / "store")
    sha256 = publish_model(store, saved(every_type_model(PHOTOS), tmp_path), PHOTOS, preprocess=SPEC)
    copy_artifact(store, sha256, tmp_path / "model")
    monkeypatch.delitem(sys.modules, "fettle.server.pictures")
    monkeypatch.setitem(sys.modules, "fettle.preprocess.item", None)  # which imports it
    model = load(tmp_path / "model", sha256, None, 1)
    model.close()
    assert model.pictures == not_installed("pillow", "server")
    assert "the package pillow is not installed" in model.pictures and "pip install '.[server]'" in model.pictures
    assert "images are not accepted" in caplog.text


def test_a_picture_whose_decoding_takes_too_much_cpu_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fettle.server.pictures.MOST_CPU_SECONDS", -1.0)
    with pytest.raises(RequestError, match="of CPU to decode") as raised:
        Pictures(PHOTOS, SPEC).inputs(file(photo()), JPEG, MOST)
    assert raised.value.code is Code.INVALID


def test_a_narrow_picture_is_bounded_by_its_rows_which_cost_memory_of_their_own() -> None:
    for width in (1, 8):
        rows = MOST // width // 2 + 1
        with pytest.raises(RequestError, match=f"{width} x {rows} pixels: the limit is") as raised:
            Pictures(signature(-1, 3, 8, 8), PreprocessSpec()).inputs(png(width, rows), PNG, MOST)
        assert raised.value.code is Code.TOO_LARGE


def test_inputs_that_are_made_of_small_pictures_are_bounded_like_bodies_and_released(tmp_path: Path) -> None:
    made, small, larger = 16 * 16 * 3 * 4, file(photo(8, 8), PNG), file(photo(20, 20), PNG)
    server = Photos(tmp_path, max_bodies_bytes=made + len(small), max_reading=1)
    try:
        for _ in range(2):
            assert [server.ask(picture, PNG).status_code for picture in (small, larger)] == [200, 503]
    finally:
        server.stop()


def test_a_server_of_a_model_that_takes_no_pictures_does_not_import_what_decodes_them() -> None:
    code = (
        "import sys, fettle.server.process as process; process._imported_fronts(); "
        "assert not {name for name in sys.modules if name.split('.')[0] == 'PIL'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
