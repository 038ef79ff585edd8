"""Live updates over real sockets: what is sent, where a client goes on, and how many there may be."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import fastapi.routing
import httpx2
import pytest
import uvicorn
from api_world import World
from hypothesis import given
from hypothesis import strategies as st

from api.directory import Role
from api.live import CLIENTS_MAX, CLIENTS_OF_ONE_MAX, Live
from api.problems import Problem
from ledger.application import Ledger
from ledger.services import streams


@pytest.fixture
def base(world: World) -> Iterator[str]:
    """The address of the real app on a real server."""
    config = uvicorn.Config(
        world.app, host="127.0.0.1", port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = server.force_exit = True
    thread.join(30)


@pytest.fixture
def stream_id(world: World) -> UUID:
    key = streams.make_stream_key("main", b"s" * 20)
    stream_id = streams.register_stream(
        world.ledger, slug="main", owner_id=uuid4(), stream_key=key, at_us=world.now_us
    )
    world.stream_id = stream_id
    world.project()
    return stream_id


class Events:
    """What a browser makes of the lines."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = response.iter_lines()

    def next(self) -> tuple[int, str, Any]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                return int(fields["id"]), fields["event"], json.loads(fields["data"])
        raise EOFError

    def until(self, wanted: Callable[[Any], bool]) -> tuple[int, Any]:
        while True:
            number, _, data = self.next()
            if wanted(data):
                return number, data


@contextlib.contextmanager
def following(url: str, headers: dict[str, str] | None = None) -> Iterator[Events]:
    with (
        httpx2.Client(timeout=30, trust_env=False) as client,
        client.stream("GET", url, headers=headers or {}) as response,
    ):
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response)


def test_a_friend_is_told_what_they_earned_and_goes_on_where_they_were(
    base: str, world: World, stream_id: UUID
) -> None:
    friend_id, node_id = uuid4(), uuid4()
    token = world.token(Role.FRIEND, friend_id)
    url = f"{base}/api/friends/me/events"
    with following(url, token) as events:
        first, kind, data = events.next()
        assert (kind, data["pending_micro"], data["lines"], data["reload"]) == ("statement", 0, [], True)
        world.earn(friend_id, node_id, 1_234_560)
        second, news = events.until(lambda data: data["pending_micro"])
        assert second >= first
        assert (news["pending_micro"], news["reload"]) == (1_234_560, False)
        assert [line["amount_micro"] for line in news["lines"]] == [1_234_560]
    world.earn(friend_id, node_id, 1_000_000, epoch=1)
    with following(url, token | {"Last-Event-ID": str(second)}) as events:
        third, missed = events.until(lambda data: data["pending_micro"] == 2_234_560)
        assert [line["amount_micro"] for line in missed["lines"]] == [1_000_000]
        assert not missed["reload"]
    with following(url, token | {"Last-Event-ID": str(third)}) as events:
        assert events.next()[2]["lines"] == []


def test_everybody_sees_a_stream_go_live(base: str, world: World, stream_id: UUID) -> None:
    with (
        following(f"{base}/api/streams/main/events") as one,
        following(f"{base}/api/streams/main/events") as two,
    ):
        assert one.next()[2]["state"] == two.next()[2]["state"] == "READY"
        world.go_live(stream_id)
        world.project()
        assert one.until(lambda data: data["state"] == "LIVE")[0] == world.ledger.size()
        assert two.until(lambda data: data["state"] == "LIVE")[1]["slug"] == "main"


def test_an_error_nobody_expected_costs_one_look(
    base: str, world: World, stream_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [RuntimeError("a bug")]

    def wait(self: Ledger, size: int, timeout_s: float) -> int:
        if looks:
            raise looks.pop()
        return size

    monkeypatch.setattr(Ledger, "wait", wait)
    with following(f"{base}/api/streams/main/events") as events:
        events.next()
        deadline = time.monotonic() + 20
        while looks:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        monkeypatch.undo()
        world.go_live(stream_id)
        world.project()
        events.until(lambda told: told["state"] == "LIVE")


def test_a_quiet_connection_is_kept_awake(
    base: str, stream_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    url = f"{base}/api/streams/main/events"
    with httpx2.Client(timeout=30, trust_env=False) as client, client.stream("GET", url) as response:
        assert ": ping" in response.iter_lines()


def test_one_client_has_a_few_connections_and_gets_them_back(base: str, stream_id: UUID) -> None:
    url = f"{base}/api/streams/main/events"
    with contextlib.ExitStack() as stack:
        open_ones = [stack.enter_context(following(url)) for _ in range(CLIENTS_OF_ONE_MAX)]
        for events in open_ones:
            events.next()
        refused = httpx2.get(url, trust_env=False)
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
        assert refused.headers["retry-after"] == "30"
    deadline = time.monotonic() + 30  # for the server to notice that they are gone
    while not admitted(url):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def admitted(url: str) -> bool:
    with httpx2.Client(timeout=30, trust_env=False) as client, client.stream("GET", url) as response:
        return response.status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/friends/me/events", {}, 401),
        ("/api/streams/none/events", {}, 404),
        ("/api/friends/me/events", {"Last-Event-ID": "x"}, 422),
        ("/api/friends/me/events", {"Last-Event-ID": "-1"}, 422),
    ],
)
def test_what_cannot_be_followed_is_a_problem(
    base: str, world: World, path: str, headers: dict[str, str], status: int
) -> None:
    if status == 422:
        headers = headers | world.token(Role.FRIEND, uuid4())
    response = httpx2.get(base + path, headers=headers, trust_env=False)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=60))
def test_places_are_counted_for_each_and_in_all_and_given_back(moves: list[tuple[str, bool]]) -> None:
    live, held = Live(None), {who: [] for who in "abcdef"}  # type: ignore[arg-type, var-annotated]
    for who, comes in moves:
        if comes:
            place = live.place(who)
            if len(held[who]) == CLIENTS_OF_ONE_MAX:
                with pytest.raises(Problem):
                    place.__enter__()
            else:
                place.__enter__()
                held[who].append(place)
        elif held[who]:
            held[who].pop().__exit__(None, None, None)
    assert live._clients.total() == sum(map(len, held.values())) <= CLIENTS_MAX
    assert set(live._clients) == {who for who, places in held.items() if places}


def test_all_places_together_are_bounded() -> None:
    live = Live(None)  # type: ignore[arg-type]  # counting needs neither
    with contextlib.ExitStack() as stack:
        for number in range(CLIENTS_MAX):
            stack.enter_context(live.place(str(number)))
        with pytest.raises(Problem), live.place("one more"):
            pass


def test_a_process_that_ends_ends_its_streams_at_once(base: str, world: World, stream_id: UUID) -> None:
    with following(f"{base}/api/streams/main/events") as events:
        events.next()
        world.app.state.live.close()
        with pytest.raises(EOFError):
            events.next()


def test_who_follows_the_same_is_served_by_one_query(world: World) -> None:
    live, made = Live(world.services), []

    def make() -> int:
        made.append(1)
        return len(made)

    async def run() -> None:
        async def first(number: int) -> int:
            with live.place(str(number)):
                async for state in live.follow("topic", make, life_s=20):
                    return state
            raise EOFError

        states = await asyncio.gather(*(first(n) for n in range(20)))
        assert set(states) <= {1, 2}  # a tick may fall between them

    asyncio.run(run())
