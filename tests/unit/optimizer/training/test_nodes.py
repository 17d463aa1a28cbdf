"""Several processes train one model: to the result of one, with one that writes, and on from the checkpoint when one of them is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from tests.data import trainable
from tests.unit.optimizer.training.course import Course
from tests.warm import Popen
from tools.ports import free_port

from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, unframe
from fettle.api.task import LEADER_VARIABLE, BuildTask, StoredModel, encode_task
from fettle.errors import WorkerLostError
from fettle.optimizer.ranks import RANK_VARIABLE
from fettle.optimizer.training import together
from fettle.optimizer.training.items import batches
from fettle.store.store import Store
from fettle.store.uris import Mounts

STEP = {"distill": {"alpha": 1.0, "beta": 0.5}}
TRAIN: dict[str, Any] = {"epochs": 8, "batchSize": 50, "optimizer": "SGD", "learningRate": 0.02}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A net that knows some of its digits, and has more to learn."""
    return Course.of(tmp_path_factory.mktemp("plain"), trainable.learned(trainable.Plain))


@contextmanager
def pods(task: BuildTask, folder: Path, elsewhere: Path | None = None) -> Iterator[list[Popen]]:
    """A process for each node, as the pods of an Indexed Job start them: over loopback, each on one core. None of them outlives the test.

    `elsewhere`: what all but the leader see of the claim, if not the same.
    """
    shared = {
        **os.environ,
        "FETTLE_TASK": encode_task(task),
        "GLOO_SOCKET_IFNAME": "lo",
        LEADER_VARIABLE: f"127.0.0.1:{free_port()}",
    }
    cores = sorted(os.sched_getaffinity(0))
    started = [
        Popen(
            (sys.executable, "-m", "fettle.optimizer"),
            cores=[cores[rank % len(cores)]],
            env={
                **shared,
                "FETTLE_MOUNTS": json.dumps({"claim": str((elsewhere or folder) if rank else folder)}),
                RANK_VARIABLE: str(rank),
                "FETTLE_TERMINATION_LOG": str(folder / f"termination-{rank}"),
            },
            stdout=subprocess.PIPE,
            stderr=(folder / f"log-{rank}").open("w"),
            start_new_session=True,
        )
        for rank in range(task.nodes)
    ]
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def termination(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"termination-{rank}").read_text())
    return found


def trained(task: BuildTask, folder: Path) -> BuildReport:
    """What the leader answers."""
    with pods(task, folder) as processes:
        out = [process.communicate()[0] for process in processes]
    for rank, process in enumerate(processes):
        assert process.returncode == 0, (folder / f"log-{rank}").read_text()[-2000:]
    report = unframe(out[0], termination(folder, 0)["resultSha256"])
    assert isinstance(report, BuildReport)
    assert report.built is not None, report.message
    return report


def weights(course: Course, model: StoredModel) -> list[Any]:
    return [numpy_helper.to_array(tensor) for tensor in course.onnx(model).graph.initializer]


def copied(course: Course, folder: Path) -> Path:
    """The claim, in a folder of its own."""
    shutil.copytree(course.folder, folder)
    return folder


@dataclass(frozen=True)
class Trained:
    """What two processes answered that nobody disturbed, and the claim in which they trained."""

    folder: Path
    report: BuildReport


@pytest.fixture(scope="module")
def undisturbed(plain: Course, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Each process takes seconds to start, so they are started once."""
    folder = copied(plain, tmp_path_factory.mktemp("undisturbed") / "claim")
    return Trained(folder, trained(plain.task(STEP, **TRAIN, nodes=2), folder))


def test_two_processes_train_to_the_result_of_one(plain: Course, undisturbed: Trained) -> None:
    alone = plain.build(STEP, **TRAIN)
    assert alone.built is not None and alone.training is not None, alone.message
    two = undisturbed.report
    assert two.training is not None
    for here, there in zip(alone.training.curve, two.training.curve, strict=True):
        assert there.held_out_loss == pytest.approx(here.held_out_loss, rel=1e-3)
        assert there.score == pytest.approx(here.score, abs=0.02)
    assert two.training.curve[-1].held_out_loss < two.training.curve[0].held_out_loss, "it has learned"
    other = Course(undisturbed.folder, plain.prepared, plain.evaluation)
    assert two.built is not None
    for one, same in zip(weights(plain, alone.built), weights(other, two.built), strict=True):
        np.testing.assert_allclose(same, one, atol=1e-3)


def test_a_training_that_lost_a_process_goes_on_to_the_file_of_an_undisturbed_one(
    plain: Course, undisturbed: Trained, tmp_path: Path
) -> None:
    task = plain.task(STEP, **TRAIN, nodes=2)
    folder = copied(plain, tmp_path / "claim")
    checkpoints = folder / "store/checkpoints"
    with pods(task, folder) as (leader, worker):
        while not list(checkpoints.glob("*/*.pt")):
            assert leader.poll() is None, (folder / "log-0").read_text()[-2000:]
            time.sleep(0.05)
        os.killpg(worker.pid, signal.SIGKILL)
        leader.communicate()
    lost = termination(folder, 0)
    assert (lost["outcome"], lost["reason"], lost["retryable"]) == ("Failed", "NodeLost", True), lost
    assert "the next attempt goes on from the last checkpoint" in lost["message"]
    resumed = trained(task, folder)
    assert "resuming from checkpoint" in (folder / "log-1").read_text()
    whole = undisturbed.report
    assert resumed.built == whole.built
    assert resumed.training is not None and whole.training is not None
    assert resumed.training.curve == whole.training.curve
    store = Store.open("pvc://claim/store", Mounts({"claim": folder}))
    assert not store.names(f"checkpoints/{resumed.cache_key}"), "what is done needs none"


@pytest.mark.parametrize("leader_knows", [True, False])
def test_whether_there_is_anything_to_train_is_for_the_leader_to_say(
    plain: Course, tmp_path: Path, leader_knows: bool
) -> None:
    """Pods on different classes of CPU look for different answers in the store."""
    task = plain.task(STEP, **{**TRAIN, "epochs": 1}, nodes=2)
    known, unknown = copied(plain, tmp_path / "known"), copied(plain, tmp_path / "unknown")
    before = trained(task, known)
    leader, worker = (known, unknown) if leader_knows else (unknown, known)
    with pods(task, leader, worker) as processes:
        out = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], (leader / "log-1").read_text()[-2000:]
    report = unframe(out[0], termination(leader, 0)["resultSha256"])
    assert isinstance(report, BuildReport)
    assert report.built == before.built
    assert ("reusing the result" in (leader / "log-0").read_text()) == leader_knows


PICKY = """
import os
import torch.nn.functional as functional

def loss(outputs, labels):
    (scores,) = outputs.values()
    if scores.requires_grad and os.environ["JOB_COMPLETION_INDEX"] == "1":
        raise ValueError("a label that only the worker has")
    return functional.cross_entropy(scores, labels.long())
"""


def refused(task: BuildTask, folder: Path) -> str:
    """Why the leader answers that the recipe does not apply; the others end without an error."""
    with pods(task, folder) as processes:
        out = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], (folder / "termination-0").read_text()
    report = unframe(out[0], termination(folder, 0)["resultSha256"])
    assert isinstance(report, BuildReport)
    assert (report.built, report.reason) == (None, Reason.RECIPE_NOT_APPLICABLE)
    return report.message


def test_why_a_recipe_does_not_apply_is_known_to_the_leader_although_only_a_worker_found_it(
    plain: Course, tmp_path: Path
) -> None:
    task = plain.task(STEP, **TRAIN, nodes=2, loss="Custom", custom={"code": PICKY})
    assert "ValueError: a label that only the worker has" in refused(task, copied(plain, tmp_path / "claim"))


def test_students_of_different_shapes_are_not_trained_together(plain: Course, tmp_path: Path) -> None:
    step = {"distill": {"student": {"callable": "tests.data.trainable:uneven"}}}
    message = refused(plain.task(step, **TRAIN, nodes=2), copied(plain, tmp_path / "claim"))
    assert "the pods changed the model to different shapes" in message and "set it to 1" in message


def test_a_student_that_one_process_cannot_make_is_refused_in_all_of_them(plain: Course, tmp_path: Path) -> None:
    step = {"distill": {"student": {"callable": "tests.data.trainable:picky"}}}
    message = refused(plain.task(step, **TRAIN, nodes=2), copied(plain, tmp_path / "claim"))
    assert "could not make a student: OSError: a file that only the leader has" in message


@pytest.mark.parametrize("taken", [True, False], ids=["its port is taken", "the other never starts"])
def test_a_leader_whom_nobody_can_join_ends_its_attempt(taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "TIMEOUT", timedelta(seconds=1))
    monkeypatch.setenv(RANK_VARIABLE, "0")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        if taken:
            other.listen()
        else:
            other.close()
        monkeypatch.setenv(LEADER_VARIABLE, f"127.0.0.1:{port}")
        told = "another process of this training cannot be reached; the next attempt goes on from the last checkpoint"
        with pytest.raises(WorkerLostError, match=told) as caught, together.joined(2):
            pass
    assert caught.value.retryable


def test_several_nodes_need_a_cluster(plain: Course) -> None:
    report = plain.build(STEP, **TRAIN, nodes=2)
    assert report.built is None
    assert (
        "train.nodes: 2 needs a cluster, where each node is a pod: set it to 1 to train on this machine"
        in report.message
    )


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_each_node_has_two_items_of_every_batch(nodes: int) -> None:
    for count in range(20, 60):
        sizes = [len(batch) for batch in batches(range(count), 16, 0, 1, nodes)]
        assert sum(sizes) == count
        assert min(sizes) >= 2 * nodes
