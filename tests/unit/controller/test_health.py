"""The probes: what counts as a sign of life, for whom."""

from __future__ import annotations

import httpx
import pytest

from fettle.controller.health import Health, serve

NOW = 1000.0
OLD, FRESH = NOW - 91, NOW - 89


def health(
    *, election: float = FRESH, queue: float = FRESH, watch: float | None = FRESH, leading: bool = True
) -> Health:
    return Health(
        patience=90,
        election_turned_at=lambda: election,
        queue_turned_at=lambda: queue,
        watch_seen_at=watch,
        leading=leading,
        clock=lambda: NOW,
    )


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (health(), ""),
        (health(queue=OLD), "queue"),
        (health(watch=OLD), "watch of the Lease"),
        (health(election=OLD), "election"),
        (health(leading=False, queue=OLD, watch=None), ""),
        (health(leading=False, election=OLD), "election"),
    ],
)
def test_what_has_not_moved_is_named(state: Health, why: str) -> None:
    assert state.why_dead().partition(":")[0] == why


def test_a_standby_is_ready_and_a_leader_once_it_has_listed() -> None:
    state = health(leading=False)
    assert state.ready()
    state.leading = True
    assert not state.ready()
    state.synced = lambda: True
    assert state.ready()


async def test_the_port_answers_what_the_probes_ask() -> None:
    state = health()
    async with serve(state, "127.0.0.1", 0, lambda: None) as port, httpx.AsyncClient(trust_env=False) as http:
        base = f"http://127.0.0.1:{port}"
        assert (await http.get(f"{base}/healthz")).status_code == 200
        assert (await http.get(f"{base}/readyz")).status_code == 503
        assert "fettle_queue_depth" in (await http.get(f"{base}/metrics")).text
        state.watch_seen_at = OLD
        answer = await http.get(f"{base}/healthz")
        assert (answer.status_code, answer.text) == (503, "watch of the Lease: no progress for 91 s")
