"""The request log: what clients asked becomes files that an optimization reads, and a store that is away costs no request."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from tests.unit.optimizer.prepare.workbench import Workbench
from tests.unit.server.in_process import Sent
from tests.unit.server.serving import BODY, SIGNATURE, Server, lookup_model, metric
from tools.serving import CLAIM, open_store

from fettle.api.data import EvaluationSpec
from fettle.errors import UsageError
from fettle.optimizer.data.columns import Room
from fettle.optimizer.data.items import ItemsRequest, read
from fettle.server import protocol
from fettle.server.metrics import Metrics
from fettle.server.model import ServedModel
from fettle.server.request_log import LATEST, RequestLog, Reservoir
from fettle.server.samples import Samples
from fettle.server.service import InferenceService
from fettle.server.settings import ServerSettings
from fettle.store.uris import Mounts

FOLDER = "requests/team/lookup"
INTERVAL = 60


class Clock:
    """Goes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a store whose claim is mounted."""
    open_store(tmp_path / "store")
    for name, value in Mounts({CLAIM: tmp_path / "store"}).to_environment().items():
        monkeypatch.setenv(name, value)
    return tmp_path / "store"


def logging_to(uri: str, **changed: Any) -> ServerSettings:
    told = {"max_items": 3, "interval_seconds": INTERVAL, "max_files": 2, **changed}
    named = {f"request_log_{key}": value for key, value in told.items()}
    return ServerSettings(model="lookup", revision="r", request_log_uri=uri, request_log_folder=FOLDER, **named)


def made(settings: ServerSettings, clock: Clock) -> tuple[RequestLog, Metrics]:
    metrics = Metrics("lookup", "r")
    return RequestLog(settings, metrics, clock, random.Random(1)), metrics


def value(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(f"fettle_server_{name}_total", {"model": "lookup", "revision": "r"})


def item(number: float) -> dict[str, Any]:
    return {"x": np.full(4, number, np.float32)}


def files(store: Path) -> list[str]:
    return sorted(path.name for path in (store / FOLDER).glob("*")) if (store / FOLDER).is_dir() else []


def logged(store: Path, name: str = LATEST) -> list[list[float]]:
    """What an optimization reads from the file."""
    request = ItemsRequest(f"pvc://{CLAIM}/{FOLDER}/{name}")
    items = read(request, Mounts({CLAIM: store}), SIGNATURE, {"x": 0}, Room(1 << 20))
    rows: list[list[float]] = items.arrays["x"].reshape(-1, 4).tolist()
    return sorted(rows)


@pytest.fixture
def service(model: ServedModel, store: Path) -> Iterator[InferenceService]:
    """A service that logs requests, and takes a sample of each."""
    found = InferenceService(logging_to(f"pvc://{CLAIM}", interval_seconds=1e-9), model)
    found.samples = Samples(model.signature, 8, 1 << 20, clock=itertools.count().__next__)
    yield found
    found.close()


async def ask(service: InferenceService, numbers: list[int]) -> None:
    for number in numbers:
        body = {"inputs": [BODY["inputs"][0] | {"data": [number] * 4}]}
        sent = orjson.dumps(body)
        answer = await service.infer(service.bodies.read(Sent(sent), len(sent)), protocol)
        assert orjson.loads(answer)["outputs"][0]["data"] == [number] * 4


async def test_what_was_asked_is_evaluated_by_the_next_optimization(service: InferenceService, store: Path) -> None:
    await ask(service, [1, 2, 3])
    assert service.request_log is not None
    service.request_log.turn()
    assert logged(store) == [[number] * 4 for number in (1, 2, 3)]
    bench = Workbench(store)
    bench.put(lookup_model())
    asked = EvaluationSpec(uri=f"pvc://claim/{FOLDER}/{LATEST}")
    prepared = bench.prepare(bench.task(evaluation=asked))
    assert (prepared.items.items, prepared.generated) == (3, False)
    assert "no labels 'labels': candidates are compared with the original's answers" in prepared.notes


def test_a_file_is_complete_and_no_more_than_one_is_written_in_an_interval(store: Path) -> None:
    clock = Clock()
    log, metrics = made(logging_to(f"pvc://{CLAIM}"), clock)
    for number in range(2):
        log.offer(item(number))
    clock.now += INTERVAL
    log.turn()
    assert files(store) == [], "two of three items"
    log.offer(item(2))
    log.turn()
    assert logged(store) == [[number] * 4 for number in range(3)]
    assert len(files(store)) == 2
    for number in range(10, 20):
        log.offer(item(number))
    log.turn()
    assert len(logged(store)) == 3 and logged(store)[0] == [0] * 4, "the interval is not over"
    assert value(metrics, "logged_items") == 3


def test_the_oldest_files_are_removed_and_no_others(store: Path) -> None:
    clock = Clock()
    log, _ = made(logging_to(f"pvc://{CLAIM}"), clock)
    folder = store / FOLDER
    folder.mkdir(parents=True)
    old = ["20250101T000000Z-pod-a-1.npz", "20250101T000001Z-pod-b-7.npz", "20250102T000000Z-pod-a-1.npz"]
    for name in (*old, "mine.npz", "notes.txt"):
        (folder / name).write_bytes(b"")
    for number in range(3):
        log.offer(item(number))
    clock.now += INTERVAL
    log.turn()
    found = files(store)
    assert [name for name in found if name[0] == "2"][:1] == old[-1:]
    assert len(found) == 5 and {LATEST, "mine.npz", "notes.txt"} <= set(found)


def test_a_store_that_is_away_costs_a_counted_warning(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    log, metrics = made(logging_to(f"pvc://{CLAIM}"), clock)
    store.rename(tmp_path / "away")
    for back in (False, True):
        if back:
            (tmp_path / "away").rename(store)
        for number in range(3):
            log.offer(item(10 * back + number))
        clock.now += INTERVAL
        with caplog.at_level(logging.WARNING):
            log.turn()
    assert value(metrics, "request_log_failures") == 1
    assert "requests could not be logged: " in caplog.text and "there is no such folder" in caplog.text
    assert logged(store) == [[number] * 4 for number in (10, 11, 12)], "the next ones are"


def test_a_full_disk_is_a_counted_warning(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    log, metrics = made(logging_to(f"pvc://{CLAIM}"), clock)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fettle.store.store.shutil.copyfileobj", full)
    for number in range(3):
        log.offer(item(number))
    clock.now += INTERVAL
    log.turn()
    assert value(metrics, "request_log_failures") == 1
    assert "the store is full" in caplog.text
    assert files(store) == [], "not even a part of a file"


def test_items_that_no_file_may_hold_are_left_out(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log, metrics = made(logging_to(f"pvc://{CLAIM}"), clock)
    for number in (np.inf, 1, 1):
        log.offer(item(number))
    clock.now += INTERVAL
    log.turn()
    assert logged(store) == [[1] * 4]
    for _ in range(3):
        log.offer(item(np.inf))
    clock.now += INTERVAL
    log.turn()
    assert value(metrics, "request_log_failures") == 1
    assert "no file can hold any of the sampled items" in caplog.text


def test_each_request_is_as_likely_to_be_logged_whenever_it_came() -> None:
    chosen: list[float] = []
    for seed in range(200):
        reservoir = Reservoir(10, 1 << 20, random.Random(seed))
        for number in range(100):
            reservoir.offer(item(number))
        numbers = [float(inputs["x"][0]) for inputs in reservoir.items()]
        assert len(set(numbers)) == 10
        chosen += numbers
    quarters = np.histogram(chosen, bins=4, range=(0, 100))[0] / len(chosen)
    assert np.abs(quarters - 0.25).max() < 0.03


def test_a_sample_takes_no_more_memory_than_it_may() -> None:
    rng = random.Random(3)
    reservoir = Reservoir(1000, 10_000, rng)
    for _ in range(2000):
        reservoir.offer({"x": np.zeros(rng.randrange(1, 300), np.float32)})
        assert sum(inputs["x"].nbytes for inputs in reservoir.items()) <= 10_000
    assert reservoir.full and len(reservoir.items()) > 5


def test_texts_count_with_what_they_take_in_memory() -> None:
    reservoir = Reservoir(1000, 10_000, random.Random(3))
    for number in range(1000):
        reservoir.offer({"text": np.array([f"{number}"] * 10, object)})
    assert 5 < len(reservoir.items()) < 20


def test_an_item_that_has_no_room_even_alone_takes_the_place_of_no_other(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    log, metrics = made(logging_to(f"pvc://{CLAIM}", max_bytes=1000), clock)
    large = {"x": np.zeros(1000, np.float32)}
    for number in range(3):
        log.offer(large)
        log.offer(item(number))
        log.offer(large)
    clock.now += INTERVAL
    log.turn()
    assert logged(store) == [[number] * 4 for number in range(3)]
    log.offer(large)
    clock.now += INTERVAL
    log.turn()
    assert value(metrics, "request_log_failures") == 1
    assert "no file can hold any of the sampled items" in caplog.text


def test_long_texts_in_one_item_or_another_do_not_make_a_file_larger_than_the_sample(store: Path) -> None:
    clock = Clock()
    log, _ = made(logging_to(f"pvc://{CLAIM}", max_items=40, max_bytes=400_000), clock)
    for number in range(40):
        texts = [f"{number}"] * 100
        texts[number] = "x" * (2400 if number % 4 == 0 else 9)
        log.offer({"x": np.array(texts, object)})
    clock.now += INTERVAL
    log.turn()
    with np.load(store / FOLDER / LATEST, allow_pickle=False) as found:
        assert len(found["x"]) == 30 and found["x"].nbytes <= 400_000


def test_texts_are_read_by_an_optimization_as_they_were_sent(store: Path) -> None:
    clock = Clock()
    log, _ = made(logging_to(f"pvc://{CLAIM}"), clock)
    for text in ("good", "schön", "x" * 100_000):
        log.offer({"x": np.array(text, object)})
    log.offer({"x": np.array("bad", object)})
    clock.now += INTERVAL
    log.turn()
    with np.load(store / FOLDER / LATEST, allow_pickle=False) as found:
        assert set(found["x"].tolist()) <= {"good", "schön", "bad"} and found["x"].nbytes < 1000


def test_a_server_without_samples_says_that_it_cannot_log(model: ServedModel) -> None:
    settings = logging_to(f"pvc://{CLAIM}").model_copy(update={"samples": 0})
    with pytest.raises(UsageError, match="requires FETTLE_SERVER_SAMPLES above 0"):
        InferenceService(settings, model)


def test_without_the_setting_nothing_is_kept_for_a_log(model: ServedModel) -> None:
    service = InferenceService(ServerSettings(model="lookup"), model)
    assert service.request_log is None
    service.close()


def test_a_server_writes_its_log_by_itself(tmp_path: Path) -> None:
    told = {"uri": f"pvc://{CLAIM}", "folder": FOLDER, "max_items": 1, "interval_seconds": 0.01}
    server = Server(tmp_path, **{f"request_log_{key}": value for key, value in told.items()})
    try:
        assert httpx.post(f"{server.url}/infer", json=BODY, timeout=60).status_code == 200
        until = time.monotonic() + 60
        while metric(server, "fettle_server_logged_items_total") < 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert logged(tmp_path / "store") == [[1, 2, 3, 4]]
    finally:
        server.stop()
