"""Events: names that the API server takes, whatever the object is called."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from tests.api_server import serving

from fettle.api.reasons import Reason
from fettle.cluster import events
from fettle.cluster.kinds import OPTIMIZED_MODEL
from fettle.plan.events import EventDraft

SERVING = EventDraft("Normal", Reason.SERVING, "it serves")
DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


@pytest.mark.parametrize("name", ["digits", "a" * 253, "a" * 199 + "." + "b" * 53, "a" * 199 + "-" + "b" * 53, "a.b"])
def test_an_event_has_a_name_that_is_allowed(name: str) -> None:
    about = {"metadata": {"namespace": "team", "name": name, "uid": "u"}}
    rendered = events.render(OPTIMIZED_MODEL, about, SERVING, datetime(2026, 1, 1, tzinfo=UTC))
    found = rendered["metadata"]["name"]
    assert DNS_SUBDOMAIN.fullmatch(found) and len(found) <= 253


def test_the_same_words_about_another_occurrence_are_another_event() -> None:
    about = {"metadata": {"namespace": "team", "name": "digits", "uid": "u"}}
    at = datetime(2026, 1, 1, tzinfo=UTC)
    drafts = (SERVING, SERVING, replace(SERVING, occurrence="first"), replace(SERVING, occurrence="second"))
    rendered = [events.render(OPTIMIZED_MODEL, about, draft, at) for draft in drafts]
    assert {event["message"] for event in rendered} == {"it serves"}
    assert len({event["metadata"]["name"] for event in rendered}) == 3


async def test_the_log_has_one_line_for_an_event_whatever_its_pod_said(caplog: pytest.LogCaptureFixture) -> None:
    about = {"metadata": {"namespace": "team", "name": "digits", "uid": "u"}}
    said = "exit code 1: Traceback\n  boom\n2026-01-01 INFO fettle.cluster.lease: another is the leader"
    async with serving() as (_, client):
        await events.EventRecorder(client).emit(OPTIMIZED_MODEL, about, EventDraft("Warning", Reason.JOB_FAILED, said))
    (record,) = (record for record in caplog.records if record.name == events.__name__)
    told = "exit code 1: Traceback boom 2026-01-01 INFO fettle.cluster.lease: another is the leader"
    assert record.getMessage() == f"OptimizedModel team/digits: JobFailed: {told}"
