"""What people read of a rollout: every condition explains itself, and Events have no internal counters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fettle.api.reasons import Reason
from fettle.plan.rollout.state import PodFault

Make = Callable[..., Any]


def test_every_condition_has_a_message_at_every_moment(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)

    def watch(_w: Any, _snapshot: Any, decision: Any) -> None:
        assert all(condition.message for condition in decision.status.conditions), decision.status.conditions

    w.watchers.append(watch)
    w.ask("b")
    w.until(lambda w: w.stable == "b" and w.settled()).run(10)
    w.behaves("c", error_rate=1.0)
    w.ask("c")
    w.until(lambda w: w.status.failed_revision == "c").run(30)


def test_ready_counts_the_pods_of_each_revision(paused: Any) -> None:
    assert paused.message("Ready") == "2 stable pods and 1 canary pod ready"
    paused.order("abort", "b", "1")
    paused.until(lambda w: w.replicas == {"a": 3} and w.ready("a") == 3).run(10)
    assert paused.message("Ready") == "3 pods of stable revision a ready"


def test_one_pod_is_not_written_in_the_plural(world: Make) -> None:
    w = world(replicas=1)
    assert w.until(lambda w: w.condition("Ready")[0] == "True").message("Ready") == "1 pod of stable revision a ready"


def test_a_canary_says_at_which_step_it_is_as_its_column_does(paused: Any) -> None:
    assert paused.status.canary.step == 1
    assert paused.message("Progressing") == "canary b: step 1 (pause): waiting for promote or abort"
    paused.behaves("b", start_seconds=None, fault=PodFault(Reason.MODEL_LOAD_FAILED, "no memory"))
    paused.order("promote", "b", "1")
    paused.run(10)
    assert paused.status.canary.step == 2
    assert paused.message("Progressing") == "canary b: step 2 (weight 67): 0 of 2 canary pods are available: no memory"


def test_a_failed_revision_names_the_command_that_retries_it(paused: Any) -> None:
    paused.order("abort", "b", "1")
    paused.run(10)
    told = paused.message("Progressing")
    assert (
        told
        == "revision b is not tried again until the spec changes or you run kubectl fettle retry digits: aborted by the command abort"
    )


def test_no_event_has_a_counter_or_a_token(paused: Any) -> None:
    paused.order("promote-full", "b", "0123abcd")
    paused.until(lambda w: w.stable == "b" and w.settled()).run(10)
    paused.annotations["fettle.dev/rollback-to"] = "b/a/0123abcd"
    paused.order("promote-full", "a", "0123abcd")
    paused.until(lambda w: w.stable == "a" and w.settled())
    told = [event.message for event in paused.events]
    assert not [message for message in told if re.search(r"0123abcd|ledger|started|since", message)]
    for message in (
        "revision a (artifact pvc://store/artifacts/a) is deployed",
        "revision b (artifact pvc://store/artifacts/b) is the new canary; revision a stays stable",
        "canary b reached weight 34",
        "promote-full accepted: canary b skips the remaining steps",
        "canary b was promoted and is now stable",
        "revision a was removed: revision b was promoted",
        "rollback-to accepted: from revision b to revision a",
        "revision b was removed: the command rollback-to went back to revision a",
    ):
        assert message in told


def test_a_revision_that_comes_back_has_events_of_its_own(world: Make) -> None:
    w = world()
    for revision in ("b", "a", "b"):
        w.ask(revision)
        w.until(lambda w, revision=revision: w.stable == revision and w.settled()).run(10)
    promoted = [event for event in w.events if event.message == "canary b was promoted and is now stable"]
    assert len(set(promoted)) == 2
