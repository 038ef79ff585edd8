"""Steering on a real ledger: who serves whom, what is held against whom, and what a killed origin forgets."""

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from hub import steering as module
from hub.authority import InPool
from hub.keystore import KeyStore
from hub.steering import SAMPLE, LedgerSteering, LiveNode
from ledger import application
from ledger.aggregates.node import Node
from ledger.application import Ledger, NotFound
from ledger.events import Segment, SessionObserved, SessionOpened, TicketIssued
from ledger.keys import KeyPair
from ledger.receipt import Receipt, fold_digests, segment_digest, to_bitmap
from ledger.services import broadcasts, crew, nodes, streams
from ledger.services.credit_index import CreditIndex
from ledger.services.delivery import DeliveryDesk
from ledger.services.settle import catch_up
from ledger.ticket import SignedTicket
from relay.ports import Assignment, Unavailable, Unknown

T0 = 1_800_000_000_000_000
HOME = "8.8.8.8"
ELSEWHERE = "9.9.9.9"


class Clock:
    """The monotonic seconds that steering sees, and the wall clock beside them."""

    def __init__(self) -> None:
        self.s = 1_000.0

    def monotonic(self) -> float:
        return self.s

    def now_us(self) -> int:
        return T0 + int(self.s * 1_000_000)


class Doors:
    """Who answers at this moment."""

    def __init__(self) -> None:
        self.silent: set[UUID] = set()
        self.asked = 0
        self.fresh = False

    def answered(self, nid: UUID) -> bool:
        return self.fresh

    async def answers(self, nid: UUID) -> bool:
        self.asked += 1
        return nid not in self.silent


class Hub:
    """A live stream of 40 segments and a steering that can be killed and started again."""

    def __init__(self, ledger: Ledger, folder: Path, pool: ThreadPoolExecutor, clock: Clock) -> None:
        self.ledger, self.clock, self.keys = ledger, clock, KeyStore.open(folder)
        self.in_pool = InPool(pool)
        self.doors = Doors()
        self.media = {n: b"segment %d" % n for n in range(40)}
        crew.found_crew(ledger, name="c", unit="EUR", epoch_length_s=3600, at_us=T0)
        self.stream_id = streams.register_stream(
            ledger,
            slug="main",
            owner_id=uuid4(),
            stream_key=streams.make_stream_key("main", b"k" * 20),
            at_us=T0,
        )
        broadcast, _ = broadcasts.start_or_resume(
            ledger,
            self.stream_id,
            new_broadcast_id=uuid4(),
            new_rendition_id=uuid4(),
            video_codec="v",
            audio_codec="a",
            grace_s=15,
            at_us=T0,
        )
        assert broadcast.rendition_id is not None
        self.broadcast_id, self.rendition = broadcast.id, broadcast.rendition_id
        self.publish(self.media)
        self.node_keys: dict[UUID, KeyPair] = {}
        self.start()

    def publish(self, media: dict[int, bytes]) -> None:
        self.media |= media
        segments = [
            Segment(n, 2_000_000, len(data), hashlib.sha256(data).digest(), T0) for n, data in media.items()
        ]
        broadcasts.publish_segments(self.ledger, self.broadcast_id, segments, at_us=self.clock.now_us())

    def start(self) -> None:
        """A new process: nothing of the one before is in memory."""
        self.desk = DeliveryDesk(
            self.ledger,
            digest_of=lambda _, nonce, n: segment_digest(nonce, self.media[n]) if n in self.media else None,
        )
        self.steering = LedgerSteering(
            self.ledger,
            self.desk,
            self.keys,
            self.in_pool,
            now_us=self.clock.now_us,
            new_id=uuid4,
            rng=random.Random(7),
            doors=self.doors,
        )

    def add_nodes(self, count: int) -> list[UUID]:
        for _ in range(count):
            key = KeyPair(random.randbytes(32))
            code = key.public_key.hex()[:20]
            nodes.create_invite(self.ledger, friend_id=uuid4(), code=code, expires_us=2 * T0, at_us=T0)
            node, _ = nodes.join_node(
                self.ledger, code=code, public_key=key.public_key, prefix_commitment=b"", at_us=T0
            )
            self.node_keys[node.id] = key
        self.all_alive()
        return list(self.node_keys)

    def all_alive(self, *but: UUID) -> None:
        self.steering.update_live_nodes(
            [LiveNode(n, f"http://node-{n}", 0) for n in self.node_keys if n not in but]
        )

    def open(self, ip: str = HOME) -> UUID:
        session = run(self.steering.open_session("main", ip))
        assert session is not None
        return session

    def assigned(self, session: UUID, head: int = 20) -> Assignment | None:
        return run(self.steering.assignment(session, self.rendition, head))

    def node_of(self, session: UUID, head: int = 20) -> UUID:
        assignment = self.assigned(session, head)
        assert assignment is not None
        return UUID(assignment.node_url.removeprefix("http://node-"))

    def events(self, *kinds: type) -> list[Any]:
        return [r.event for r in self.ledger.read(0, 10_000) if isinstance(r.event, kinds)]

    def claim(self, signed: SignedTicket, sequences: list[int]) -> str:
        """The verdict on the node's own claim for a plain player."""
        t = signed.ticket
        node = next(k for k in self.node_keys.values() if k.public_key == t.node_key)
        digest = fold_digests(segment_digest(t.nonce, self.media[n]) for n in sequences)
        receipt = Receipt(
            ticket_hash=t.hash,
            counter=1,
            base_sequence=t.first_sequence,
            bitmap=to_bitmap(t.first_sequence, sequences),
            digest=digest,
        )
        return self.desk.judge_receipt(receipt.sign(node).encode(), at_us=self.clock.now_us()).verdict


def run(step: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(step)


@pytest.fixture
def hub(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
    with ThreadPoolExecutor(2) as pool:
        yield Hub(ledger, tmp_path, pool, clock)


def counted(hub: Hub) -> tuple[int, int]:
    """What settlement makes of all observations, (polled, fetched), when the nodes claim all they can."""
    for event in hub.events(TicketIssued):
        signed = SignedTicket.decode(event.ticket)
        hub.claim(signed, [n for n in sorted(hub.media) if signed.ticket.covers(n)])

    def payable(factor: int) -> int:
        crew.change_settings(hub.ledger, {"plain_sample_factor": factor}, at_us=hub.clock.now_us())
        index = CreditIndex()
        catch_up(hub.ledger, index)
        return sum(credit.units for credit in index.credits(0, index.position))

    return payable(1_000), payable(1)  # min(factor x fetched, polled)


# --- assignment


def test_a_session_keeps_its_node_and_its_ticket_which_stands_in_the_log(hub: Hub) -> None:
    hub.add_nodes(3)
    session = hub.open()
    first = hub.assigned(session, 20)
    assert first is not None
    for head in range(20, 30):
        hub.clock.s += 2
        assert hub.assigned(session, head) is first
    assert [e.ticket for e in hub.events(TicketIssued)] == [first.ticket.encode()]
    assert first.ticket.ticket.covers(20)
    assert first.ticket.verified_by(hub.keys.ticket.public_key)


def test_a_player_is_sent_to_its_node_only_when_that_answers_at_this_moment(hub: Hub) -> None:
    first, second = hub.add_nodes(2)
    session = hub.open()
    own = hub.node_of(session)
    other = second if own == first else first
    assert hub.doors.asked == 1, "before anything was promised to it"
    known = hub.steering.known_assignment
    with pytest.raises(Unknown):
        known(session, hub.rendition, 21)
    hub.doors.fresh = True
    assert known(session, hub.rendition, 21) is hub.assigned(session, 21)
    hub.doors.fresh = False
    hub.doors.silent = {own}
    assert hub.assigned(session, 22) is None, "the hub serves what is listed now"
    hub.steering.observe_fetch(session, 22, HOME)
    hub.doors.silent = set()
    assert hub.node_of(session, 23) == own, "it was only slow, and nobody complained"
    assert len(hub.events(TicketIssued)) == 1
    hub.doors.silent = {own}
    assert {hub.node_of(hub.open()) for _ in range(10)} == {other}, "nobody new is sent there"
    hub.doors.silent = {own, other}
    assert hub.assigned(hub.open()) is None


def test_a_page_that_helps_itself_is_not_asked_for(hub: Hub) -> None:
    hub.add_nodes(1)
    session = run(hub.steering.open_signing_session("main", b"v" * 32, HOME, None))
    hub.doors.silent = set(hub.node_keys)
    for head in (20, 21):
        assert hub.assigned(session, head) is not None
    assert hub.steering.known_assignment(session, hub.rendition, 22) is not None
    assert hub.doors.asked == 0


def test_a_node_that_said_goodbye_is_listed_nowhere(hub: Hub) -> None:
    first, second = hub.add_nodes(2)
    session = hub.open()
    own = hub.node_of(session)
    hub.steering.node_left(own)
    assert hub.node_of(session, 21) == ({first, second} - {own}).pop()


def test_a_stream_that_does_not_exist_and_a_hub_without_nodes(hub: Hub) -> None:
    assert run(hub.steering.open_session("none", HOME)) is None
    assert hub.assigned(hub.open()) is None
    assert hub.assigned(uuid4()) is None


def test_a_ticket_is_renewed_before_its_end_without_a_gap(hub: Hub) -> None:
    hub.add_nodes(1)
    session = hub.open()
    first = hub.assigned(session, 20)
    assert first is not None
    last = first.ticket.ticket.last_sequence
    hub.clock.s += 600
    assert hub.assigned(session, last - module.RENEW_MARGIN) is first
    second = hub.assigned(session, last - module.RENEW_MARGIN + 1)
    assert second is not None
    assert second is not first
    assert second.ticket.ticket.first_sequence <= last
    assert second.ticket.ticket.last_sequence > last


@pytest.mark.parametrize("segments", [1, 2, 5, 16, 40])
def test_short_tickets_are_not_renewed_at_every_refresh(hub: Hub, segments: int) -> None:
    crew.change_settings(hub.ledger, {"ticket_segments": segments}, at_us=T0)
    hub.add_nodes(1)
    session = hub.open()
    for head in range(20, 36):
        for _ in range(3):  # a player that refreshes often
            assignment = hub.assigned(session, head)
            assert assignment is not None
            assert assignment.ticket.ticket.covers(head)
    assert len(hub.events(TicketIssued)) <= 16 // max(1, segments // 4) + 1


def test_a_node_that_is_gone_loses_its_viewers_at_the_next_refresh(hub: Hub) -> None:
    one, two = hub.add_nodes(2)
    session = hub.open()
    served_by = hub.node_of(session)
    hub.all_alive(served_by)
    assert hub.node_of(session) == ({one, two} - {served_by}).pop()


@pytest.mark.parametrize("end", [nodes.suspend, nodes.retire])
def test_a_node_that_is_suspended_or_retired_gets_no_ticket_though_it_is_alive(
    hub: Hub, end: Callable[..., Node]
) -> None:
    bad, good = hub.add_nodes(2)
    end(hub.ledger, bad, reason="test", at_us=T0)
    assert {hub.node_of(hub.open()) for _ in range(10)} == {good}


def test_no_ticket_for_a_rendition_that_is_not_live(hub: Hub) -> None:
    hub.add_nodes(1)
    session = hub.open()
    assert run(hub.steering.assignment(session, uuid4(), 20)) is None
    broadcasts.end_broadcast(hub.ledger, hub.broadcast_id, reason="over", at_us=T0)
    assert hub.assigned(session) is None
    assert hub.events(TicketIssued) == []


def test_the_fewer_viewers_a_node_has_the_likelier_it_is_drawn(hub: Hub) -> None:
    hub.add_nodes(3)
    sessions = [hub.open(f"8.8.{i}.1") for i in range(30)]
    by_node = [hub.node_of(s) for s in sessions]
    assert all(by_node.count(n) >= 5 for n in hub.node_keys)


def test_the_better_the_health_of_a_node_the_likelier_it_is_drawn_and_the_worst_has_a_chance(
    hub: Hub,
) -> None:
    bad, good = hub.add_nodes(2)
    health = {bad: 0, good: 1_000}
    hub.steering.update_live_nodes([LiveNode(n, f"http://node-{n}", 0, health[n]) for n in health])
    drawn = [hub.steering._draw(list(hub.steering._live.values()), 1)[0].node_id for _ in range(2_000)]
    assert 40 < drawn.count(bad) < 200


# --- failures that viewers see


def fetch_unsampled(hub: Hub, session: UUID, ip: str = HOME) -> None:
    """The player asks the hub for a segment that its node should have served."""
    n = next(n for n in range(15, 35) if not hub.steering.pointed_at_hub(session, n))
    hub.steering.observe_fetch(session, n, ip)


def test_a_session_whose_node_failed_it_gets_another_and_not_the_same_for_a_while(hub: Hub) -> None:
    hub.add_nodes(2)
    session = hub.open()
    failed = hub.node_of(session)
    fetch_unsampled(hub, session)
    other = hub.node_of(session)
    assert other != failed
    hub.all_alive(other)
    assert hub.assigned(session) is None  # the hub serves it
    hub.clock.s += module.AVOID_S + 1
    assert hub.node_of(session) == failed


def test_a_node_that_fails_viewers_of_several_networks_is_given_to_nobody_for_a_while(hub: Hub) -> None:
    hub.add_nodes(1)
    sessions = {ip: hub.open(ip) for ip in (HOME, ELSEWHERE, "7.7.7.7")}
    for ip in (HOME, ELSEWHERE):
        assert hub.assigned(sessions[ip]) is not None
        fetch_unsampled(hub, sessions[ip], ip)
    assert hub.assigned(sessions["7.7.7.7"]) is None
    hub.clock.s += module.SUSPECT_S + 1
    assert hub.assigned(sessions["7.7.7.7"]) is not None


def test_a_rival_with_many_sessions_on_one_network_takes_nobody_else_from_a_node(hub: Hub) -> None:
    hub.add_nodes(1)
    viewer = hub.open(HOME)
    served = hub.assigned(viewer)
    for _ in range(20):
        session = hub.open(ELSEWHERE)
        assert hub.assigned(session) is not None
        fetch_unsampled(hub, session, ELSEWHERE)
    assert hub.assigned(viewer) is served


def test_a_few_complaints_among_many_content_viewers_take_nobody_from_a_node(hub: Hub) -> None:
    hub.add_nodes(1)
    viewers = [hub.open(f"8.1.{i}.1") for i in range(12)]
    served = [hub.assigned(v) for v in viewers]
    for ip in (HOME, ELSEWHERE):
        session = hub.open(ip)
        assert hub.assigned(session) is not None
        fetch_unsampled(hub, session, ip)
    assert [hub.assigned(v) for v in viewers] == served


def test_sessions_read_in_the_public_log_are_no_voice_against_a_node(hub: Hub) -> None:
    hub.add_nodes(1)
    viewers = [hub.open(f"8.1.{i}.1") for i in range(4)]
    served = [hub.assigned(v) for v in viewers]
    for event in hub.events(SessionOpened):
        fetch_unsampled(hub, event.session_id, ELSEWHERE)
    assert [hub.assigned(v) for v in viewers] == served


# --- what the hub sees of plain players


def test_one_segment_in_ten_comes_from_the_hub_the_same_ones_after_a_restart(hub: Hub) -> None:
    session = hub.open()
    drawn = [n for n in range(20_000) if hub.steering.pointed_at_hub(session, n)]
    assert 1_800 < len(drawn) < 2_200
    assert SAMPLE == 10
    other = hub.open()
    assert [n for n in range(20_000) if hub.steering.pointed_at_hub(other, n)] != drawn
    hub.start()
    run(hub.steering.session_slug(session))
    assert [n for n in range(20_000) if hub.steering.pointed_at_hub(session, n)] == drawn
    signing = run(hub.steering.open_signing_session("main", b"\x01" * 32, HOME, None))
    assert not any(hub.steering.pointed_at_hub(signing, n) for n in range(1_000))


def plain_viewer(hub: Hub) -> UUID:
    """A session with a node, to which the hub points some of the segments 15 to 24, and of 25 to 29."""
    while True:
        session = hub.open()
        if all(
            any(hub.steering.pointed_at_hub(session, n) for n in window)
            for window in (range(15, 25), range(25, 30))
        ):
            hub.assigned(session)
            return session


def watch(hub: Hub, session: UUID, first: int = 15, last: int = 25, ip: str = HOME) -> tuple[int, int]:
    """Polls a window and fetches what is pointed at the hub. What must be counted: (polled, fetched)."""
    hub.steering.observe_poll(session, range(first, last), ip)
    sampled = [n for n in range(first, last) if hub.steering.pointed_at_hub(session, n)]
    for n in sampled:
        hub.steering.observe_fetch(session, n, ip)
    return last - first, len(sampled)


def test_what_was_observed_is_recorded_once(hub: Hub) -> None:
    hub.add_nodes(1)
    session = plain_viewer(hub)
    seen = watch(hub, session)
    for _ in range(3):
        run(hub.steering.record_observations(all_now=True))
    assert len(hub.events(SessionObserved)) == 1
    assert counted(hub) == seen
    assert watch(hub, session)[0] == 10  # the same window once more
    run(hub.steering.record_observations(all_now=True))
    assert counted(hub) == seen


def test_a_session_is_one_event_a_minute_and_its_last_words_are_written_when_it_has_gone(hub: Hub) -> None:
    hub.add_nodes(1)
    hub.publish({n: b"segment %d" % n for n in range(40, 200)})
    session = plain_viewer(hub)
    for head in range(25, 165):  # not quite five minutes
        run(hub.steering.session_slug(session))
        watch(hub, session, head - 10, head)
        hub.clock.s += 2
        run(hub.steering.record_observations())
    assert len(hub.events(SessionObserved)) == 4
    hub.clock.s += module.SESSION_IDLE_S + 1
    run(hub.steering.record_observations())
    assert len(hub.events(SessionObserved)) == 5
    assert counted(hub)[0] == 149  # 15 to 163, each once


def test_a_killed_origin_loses_a_minute_of_what_it_observed_at_most(hub: Hub) -> None:
    hub.add_nodes(1)
    hub.publish({n: b"segment %d" % n for n in range(40, 200)})
    session = plain_viewer(hub)
    for head in range(25, 100):
        watch(hub, session, head - 10, head)
        hub.clock.s += 2
        run(hub.steering.record_observations())
    hub.start()  # kill -9
    assert 85 - counted(hub)[0] <= module.OBSERVE_AFTER_S / 2 + 1


def test_observations_survive_an_outage_that_comes_after_the_save(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_nodes(1)
    session = plain_viewer(hub)
    seen = watch(hub, session)
    saved = hub.ledger.save

    def save_and_lose_the_answer(*aggregates: Any) -> list[int]:
        saved(*aggregates)
        raise application.Unavailable("the connection broke")

    monkeypatch.setattr(hub.ledger, "save", save_and_lose_the_answer)
    with pytest.raises(Unavailable):
        run(hub.steering.record_observations(all_now=True))
    monkeypatch.setattr(hub.ledger, "save", saved)
    run(hub.steering.record_observations(all_now=True))
    assert len(hub.events(SessionObserved)) == 2
    assert counted(hub) == seen


@pytest.mark.parametrize("error", [application.Unavailable("away"), NotFound("gone"), RuntimeError("bug")])
def test_observations_that_could_not_be_written_are_written_the_next_time(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    hub.add_nodes(1)
    session = plain_viewer(hub)
    seen = watch(hub, session)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(hub.desk, "observe", fail)
        with pytest.raises((Unavailable, NotFound, RuntimeError)):
            run(hub.steering.record_observations(all_now=True))
    run(hub.steering.record_observations(all_now=True))
    assert counted(hub) == seen


def test_what_others_do_with_a_session_read_in_the_public_log_earns_its_node_nothing(hub: Hub) -> None:
    hub.add_nodes(1)
    session = plain_viewer(hub)
    watch(hub, session, ip=ELSEWHERE)
    run(hub.steering.record_observations(all_now=True))
    assert counted(hub) == (0, 0)
    seen = watch(hub, session, ip="8.8.8.77")  # another machine of the same network
    run(hub.steering.record_observations(all_now=True))
    assert counted(hub) == seen


def test_a_signing_viewer_is_not_observed(hub: Hub) -> None:
    hub.add_nodes(1)
    session = run(hub.steering.open_signing_session("main", b"\x01" * 32, HOME, None))
    hub.assigned(session)
    hub.steering.observe_poll(session, [1, 2], HOME)
    run(hub.steering.record_observations(all_now=True))
    assert hub.events(SessionObserved) == []


# --- an origin that was killed


def test_a_session_is_found_again_in_the_log_and_counted_neither_twice_nor_less(hub: Hub) -> None:
    hub.add_nodes(1)
    session = plain_viewer(hub)
    before = hub.assigned(session)
    assert before is not None
    first = watch(hub, session, 15, 25)
    run(hub.steering.record_observations(all_now=True))

    hub.start()  # kill -9
    hub.all_alive()
    assert run(hub.steering.session_slug(session)) == "main"
    after = hub.assigned(session, 22)
    assert after is not None
    assert after.ticket.ticket.hash != before.ticket.ticket.hash
    second = watch(hub, session, 15, 30)  # the player polls the same window, and goes on
    run(hub.steering.record_observations(all_now=True))
    polled, fetched = counted(hub)
    assert (polled, fetched) == (15, second[1])
    assert first[1] < second[1]


def test_the_ticket_of_before_is_still_good_after_a_restart(hub: Hub) -> None:
    hub.add_nodes(1)
    session = hub.open()
    before = hub.assigned(session)
    assert before is not None
    hub.start()
    hub.all_alive()
    assert hub.claim(before.ticket, [15, 16]) == "accepted"
    run(hub.steering.session_slug(session))
    after = hub.assigned(session)
    assert after is not None
    assert hub.claim(after.ticket, [15, 16]) == "duplicate"


def test_a_session_nobody_opened_is_none(hub: Hub) -> None:
    assert run(hub.steering.session_slug(uuid4())) is None


def test_a_session_of_long_ago_does_not_come_back(hub: Hub) -> None:
    session = hub.open()
    hub.start()
    hub.clock.s += module.RECALL_S + 1
    assert run(hub.steering.session_slug(session)) is None


# --- bounds


def test_sessions_in_memory_are_bounded_also_when_they_come_from_the_log(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 5)
    sessions = [hub.open() for _ in range(12)]
    for session in sessions:
        assert run(hub.steering.session_slug(session)) == "main"
    assert len(hub.steering._sessions) == 5


def test_a_session_that_was_idle_is_forgotten_after_its_observations_are_written(hub: Hub) -> None:
    hub.add_nodes(1)
    session = hub.open()
    hub.assigned(session)
    watch(hub, session)
    hub.clock.s += module.SESSION_IDLE_S + 1
    run(hub.steering.record_observations(all_now=True))
    assert hub.steering._sessions == {}
    assert len(hub.events(SessionObserved)) == 1


@pytest.mark.parametrize(
    "ips", [[HOME], [f"8.8.8.{i}" for i in range(200)], [f"2001:db8:1:{i:x}::1" for i in range(200)]]
)
def test_one_network_cannot_fill_the_log_with_sessions(
    hub: Hub, ips: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.ledger, "save", lambda *_: [])  # only the counting is of interest here

    def flood(count: int) -> int:
        opened = 0
        for i in range(count):
            try:
                run(hub.steering.open_session("main", ips[i % len(ips)]))
                opened += 1
            except Unavailable:
                continue
        return opened

    assert flood(400) == module.OPEN_BURST
    hub.clock.s += 10
    assert flood(100) == 10 * module.OPEN_RATE_S
    assert run(hub.steering.open_session("main", ELSEWHERE)) is not None
    assert run(hub.steering.open_session("main", "127.0.0.1")) is not None


def test_a_page_is_told_to_come_again_in_the_words_of_the_api(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.steering._opening, "take", lambda *_: False)
    with pytest.raises(application.Unavailable):
        run(hub.steering.open_signing_session("main", b"\x01" * 32, HOME, None))


def test_a_friend_who_says_who_they_are_is_known_to_the_session(hub: Hub) -> None:
    friend = uuid4()
    session = run(hub.steering.open_signing_session("main", b"\x01" * 32, HOME, friend))
    assert [e.account_id for e in hub.events(SessionOpened) if e.session_id == session] == [friend]


def test_only_nodes_in_good_standing_may_pull(hub: Hub) -> None:
    (nid,) = hub.add_nodes(1)
    key = hub.node_keys[nid].public_key
    assert run(hub.steering.node_may_fetch(key))
    assert not run(hub.steering.node_may_fetch(b"\x05" * 32))
    nodes.suspend(hub.ledger, nid, reason="test", at_us=T0)
    hub.clock.s += module.NODE_CACHE_S + 0.1
    assert not run(hub.steering.node_may_fetch(key))
