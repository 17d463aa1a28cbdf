"""How many processes share a pod's ports: what decides it, and what each of them may hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.serving import publish
from tools.serving import CLAIM, open_store

from fettle.api.measured import Measurement, Percentiles
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import CpuClass
from fettle.api.vocabulary import RuntimeName
from fettle.errors import UsageError
from fettle.server.processes import PATH_MILLISECONDS, Limits, ModelCost, best_count, process_count, share
from fettle.server.settings import MOST_PROCESSES, ServerSettings
from fettle.store.manifest import Manifest, MeasurementRecord, fetch_artifact, read_fetched, write_measurement
from fettle.store.uris import Mounts

MIB, GIB = 1 << 20, 1 << 30
SMALL = ModelCost(milliseconds=0.02, memory=100 * MIB)
HUGE = math.inf


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The look-up model as a pod has it, with what was measured of it."""
    root = tmp_path_factory.mktemp("processes")
    sha256 = publish(root)
    write_measurement(open_store(root / "store"), sha256, "key", record([measurement(1, 0.02, 100 * MIB)]))
    fetch_artifact(f"pvc://{CLAIM}/artifacts/{sha256}", sha256, root / "model", Mounts({CLAIM: root / "store"}))
    return root / "model", sha256


def record(measurements: list[Any]) -> MeasurementRecord:
    return MeasurementRecord(
        measured_on=CpuClass(vendor="v", architecture="x86_64"), row={"measurements": measurements}
    )


def measurement(batch: int, middle: float | None, memory: int) -> dict[str, Any]:
    latency = Percentiles(p50=middle)
    return Measurement(
        batch_size=batch,
        latency_milliseconds=latency,
        items_per_second=10_000,
        peak_memory_bytes=memory,
        runs=100,
        restarts=3,
    ).to_json()


COUNTS: list[tuple[str, dict[str, Any], dict[str, Any], ModelCost | None, Limits, int]] = [
    ("one core has no room for two", {}, {}, SMALL, Limits(1, HUGE), 1),
    ("a small model has a process for each core", {}, {}, SMALL, Limits(4, HUGE), 4),
    ("a part of a core is none", {}, {}, SMALL, Limits(2.9, HUGE), 2),
    ("without a limit nobody said what the pod may take", {}, {}, SMALL, Limits(HUGE, HUGE), 1),
    ("each process computes on as many cores as the artifact's threads", {}, {"threads": 2}, SMALL, Limits(4, HUGE), 2),
    ("and so do its concurrent runs", {}, {"threads": 1, "streams": 2}, SMALL, Limits(4, HUGE), 2),
    ("a setting of threads counts instead", {"threads": 4}, {"threads": 1}, SMALL, Limits(4, HUGE), 1),
    ("threads that use all cores leave none", {}, {"threads": 4}, SMALL, Limits(2, HUGE), 1),
    ("a large model is what the time is spent on", {}, {}, ModelCost(5, 100 * MIB), Limits(4, HUGE), 1),
    ("as long as the request's own path is small", {}, {}, ModelCost(PATH_MILLISECONDS, MIB), Limits(4, HUGE), 4),
    ("of a model that nobody measured nothing is known", {}, {}, None, Limits(4, HUGE), 1),
    ("each process needs memory for a body that it decodes", {}, {}, SMALL, Limits(4, 1 * GIB), 1),
    ("as many as fit", {}, {}, SMALL, Limits(4, 2 * GIB), 2),
    ("smaller bodies need less", {"max_body_bytes": MIB}, {}, SMALL, Limits(4, 1 * GIB), 4),
    ("a model that does not fit twice is held once", {}, {}, ModelCost(0.02, 2 * GIB), Limits(4, 3 * GIB), 1),
    ("there is an end", {}, {}, SMALL, Limits(1000, HUGE), MOST_PROCESSES),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "artifact", "cost", "limits", "count"), [row[1:] for row in COUNTS], ids=[row[0] for row in COUNTS]
)
def test_there_are_as_many_processes_as_pay_and_fit(
    fetched: tuple[Path, str],
    settings: dict[str, Any],
    artifact: dict[str, Any],
    cost: ModelCost | None,
    limits: Limits,
    count: int,
) -> None:
    manifest = read_fetched(*fetched).model_copy(update={"settings": RuntimeSettings(**artifact)})
    assert best_count(ServerSettings(**settings), manifest, cost, limits) == count


def test_a_model_on_a_gpu_has_one_process(fetched: tuple[Path, str]) -> None:
    manifest: Manifest = read_fetched(*fetched).model_copy(update={"runtime": RuntimeName.ONNXRUNTIME_CUDA})
    assert best_count(ServerSettings(), manifest, SMALL, Limits(8, HUGE)) == 1


@pytest.mark.parametrize(
    ("figures", "cost"),
    [
        ([], None),
        ([record([])], None),
        ([record([{"batchSize": "of another version"}])], None),
        ([record([measurement(1, 0.5, MIB), measurement(8, 2.0, 3 * MIB)])], ModelCost(0.5, 3 * MIB)),
        ([record([measurement(1, None, MIB)])], ModelCost(0.1, MIB)),  # 10,000 items per second
        ([record([measurement(1, 0.5, -MIB)])], None),
        ([record([measurement(1, 0.2, MIB)]), record([measurement(1, 0.4, 2 * MIB)])], ModelCost(0.4, 2 * MIB)),
    ],
    ids=["nothing", "no rows", "rows of another version", "the smallest batch", "too few runs for a median", "nonsense", "the slower machine"],
)  # fmt: skip
def test_what_a_model_costs_is_what_was_measured(figures: list[MeasurementRecord], cost: ModelCost | None) -> None:
    assert ModelCost.of(figures) == cost


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({"cpu.max": "150000 100000", "memory.max": "1073741824"}, 1.5, GIB),
        ({"cpu.max": "max 100000", "memory.max": "max"}, HUGE, HUGE),
        ({"memory/memory.limit_in_bytes": "1073741824"}, HUGE, GIB),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, HUGE, HUGE),
        ({}, HUGE, HUGE),
    ],
    ids=["limits", "no limits", "cgroup v1", "cgroup v1 without a limit", "no cgroups"],
)
def test_limits_are_those_of_the_container(tmp_path: Path, files: dict[str, str], cores: float, memory: float) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    found = Limits.here(tmp_path)
    assert found.memory == memory
    assert found.cores == cores or 1 <= found.cores < cores < HUGE, "this machine may have fewer"


def settings_of(fetched: tuple[Path, str], **more: Any) -> ServerSettings:
    return ServerSettings(folder=fetched[0], sha256=fetched[1], **more)


def test_a_setting_says_how_many_there_are(fetched: tuple[Path, str]) -> None:
    assert process_count(settings_of(fetched, processes=3)) == 3
    assert process_count(settings_of(fetched, processes=1)) == 1


LIMITS: list[dict[str, Any]] = [{"client_max_requests_per_second": 5}, {"client_max_concurrent": 5}]


@pytest.mark.parametrize("limit", LIMITS, ids=["rate", "concurrency"])
def test_a_limit_per_client_is_the_pods_so_that_one_process_keeps_it(
    fetched: tuple[Path, str], limit: dict[str, Any]
) -> None:
    assert process_count(settings_of(fetched, **limit)) == 1
    assert process_count(settings_of(fetched, processes=1, **limit)) == 1
    with pytest.raises(UsageError, match=r"FETTLE_SERVER_PROCESSES=2 and a limit per client cannot be combined"):
        process_count(settings_of(fetched, processes=2, **limit))


def test_processes_hold_together_what_one_may(fetched: tuple[Path, str]) -> None:
    whole = settings_of(fetched, stable="stable:8081", samples=256, max_bodies_bytes=1 << 30)
    parts = [share(whole, 4, number) for number in range(4)]
    for name in ("samples", "samples_max_bytes", "max_bodies_bytes", "max_reading", "grpc_max_streams"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name), name
    assert [part.stable for part in parts] == ["stable:8081", "", "", ""], "one compares, within the pod's share of CPU"
    assert {part.max_queue for part in parts} == {whole.max_queue}, "each has a model of its own"
    assert all(part.shares_ports for part in parts)


def test_each_process_has_room_for_the_largest_body() -> None:
    part = share(ServerSettings(max_body_bytes=64 * MIB, max_bodies_bytes=128 * MIB, samples=0), 8, 1)
    assert part.max_bodies_bytes * 3 // 4 >= 64 * MIB, "and for others beside it"
    assert part.max_bodies_bytes < 128 * MIB and part.samples == 0
