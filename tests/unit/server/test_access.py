"""Tokens and the bounds of each client. The clock is the test's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fettle.errors import UsageError
from fettle.server.access import MOST_CLIENTS, Access
from fettle.server.request import Code, RequestError
from fettle.server.settings import ServerSettings


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def access(clock: Clock, **settings: Any) -> Access:
    return Access(ServerSettings(**settings), clock)


def secret(folder: Path, **tokens: str) -> Path:
    """A folder as the kubelet fills it: what is visible is a link into a folder that is exchanged as a whole."""
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    for name, text in tokens.items():
        (version / name).write_text(text)
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(version / name)
    for link in folder.iterdir():
        if not link.name.startswith("..") and link.name not in tokens:
            link.unlink()
    return folder


def refusal(call: Any, *arguments: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        call(*arguments)
    return raised.value


async def stranger(guard: Access, header: str | None) -> RequestError:
    """How the request of somebody unknown ends."""
    with pytest.raises(RequestError) as raised:
        await guard.identify(header, "a")
    return raised.value


async def test_without_tokens_a_client_is_its_address_and_nobody_is_refused(clock: Clock) -> None:
    free = access(clock)
    assert free.open
    assert await free.identify(None, "10.0.0.7") == await free.identify("Bearer x", "10.0.0.7") == "10.0.0.7"
    assert free.client(None, "10.0.0.7:5000", list) == free.client(None, "10.0.0.7:5001", list) == "10.0.0.7"
    assert free.client(None, "[fd00::7]:5000", list) == "fd00::/64"


@pytest.mark.parametrize(
    ("header", "who"),
    [
        ("Bearer red", "alice"),
        ("bearer   green ", "alice"),
        ("Bearer blue", "bob"),
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic red", None),
        ("red", None),
        ("Bearer re", None),
        ("Bearer r\udce9d", None),
    ],
)
async def test_a_client_is_who_has_the_token(tmp_path: Path, clock: Clock, header: str | None, who: str | None) -> None:
    guard = access(clock, tokens_folder=secret(tmp_path, alice="red\ngreen\n", bob="  blue\n\n"))
    if who is not None:
        assert await guard.identify(header, "10.0.0.7") == who
    else:
        error = await stranger(guard, header)
        assert error.code is Code.UNAUTHENTICATED
        assert "Authorization: Bearer" in error.message and "re" not in error.message.partition("found")[2]


async def test_tokens_are_rotated_without_a_restart(tmp_path: Path, clock: Clock) -> None:
    guard = access(clock, tokens_folder=secret(tmp_path, alice="old"))
    assert await guard.identify("Bearer old", "a") == "alice"
    secret(tmp_path, alice="old\nnew")
    clock.now += 2
    assert await guard.identify("Bearer old", "a") == await guard.identify("Bearer new", "a") == "alice"
    secret(tmp_path, alice="new", carol="other")
    clock.now += 2
    assert (await stranger(guard, "Bearer old")).code is Code.UNAUTHENTICATED
    assert await guard.identify("Bearer new", "a") == "alice"
    assert await guard.identify("Bearer other", "a") == "carol"


async def test_tokens_that_cannot_be_read_for_a_moment_shut_nobody_out(tmp_path: Path, clock: Clock) -> None:
    guard = access(clock, tokens_folder=secret(tmp_path, alice="red", bob="blue"))
    (tmp_path / "bob").unlink()
    (tmp_path / "bob").symlink_to("/proc/self/mem")  # a file that is there, and whose reading fails
    clock.now += 2
    assert (await guard.identify("Bearer red", "a"), await guard.identify("Bearer blue", "a")) == ("alice", "bob")
    secret(tmp_path, alice="green")
    clock.now += 2
    assert await guard.identify("Bearer green", "a") == "alice"
    assert (await stranger(guard, "Bearer blue")).code is Code.UNAUTHENTICATED


async def test_a_client_may_have_many_tokens(tmp_path: Path, clock: Clock) -> None:
    tokens = [f"{number:064d}" for number in range(200)]
    guard = access(clock, tokens_folder=secret(tmp_path, alice="\n".join(tokens)))
    assert {await guard.identify(f"Bearer {token}", "a") for token in tokens} == {"alice"}
    assert (await stranger(guard, f"Bearer {tokens[-1][:32]}")).code is Code.UNAUTHENTICATED


@pytest.mark.parametrize("tokens", [{}, {"alice": " \n"}], ids=["no file", "an empty file"])
def test_a_secret_without_a_token_lets_nobody_think_that_the_model_is_guarded(
    tmp_path: Path, clock: Clock, tokens: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match=r"no token in .*: expected a Secret with a key for each client"):
        access(clock, tokens_folder=secret(tmp_path, **tokens))


def test_a_client_above_its_rate_is_told_when_to_come_again_and_others_are_not(clock: Clock) -> None:
    guard = access(clock, client_max_requests_per_second=4)
    for _ in range(4):
        guard.enter("a")
        guard.leave("a")
    error = refusal(guard.enter, "a")
    assert (error.code, error.retry_after) == (Code.LIMITED, 1)
    guard.enter("b")
    clock.now += 0.25
    guard.enter("a")
    assert refusal(guard.enter, "a").code is Code.LIMITED


def test_a_slow_rate_says_how_many_seconds(clock: Clock) -> None:
    guard = access(clock, client_max_requests_per_second=0.1)
    guard.enter("a")
    assert refusal(guard.enter, "a").retry_after == 10
    clock.now += 9
    assert refusal(guard.enter, "a").retry_after == 1
    clock.now += 1
    guard.enter("a")


def test_a_client_has_so_many_requests_under_way_and_no_more(clock: Clock) -> None:
    guard = access(clock, client_max_concurrent=2)
    guard.enter("a")
    guard.enter("a")
    assert refusal(guard.enter, "a").retry_after == 1
    guard.enter("b")
    guard.leave("a")
    guard.enter("a")


def test_clients_without_end_take_bounded_memory_and_who_has_requests_under_way_is_not_forgotten(clock: Clock) -> None:
    guard = access(clock, client_max_concurrent=1)
    guard.enter("busy")
    for number in range(3 * MOST_CLIENTS):
        guard.enter(str(number))
        guard.leave(str(number))
    assert len(guard._clients) <= MOST_CLIENTS + 1
    assert refusal(guard.enter, "busy").code is Code.LIMITED
