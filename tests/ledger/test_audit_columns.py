"""Replay in columns and receipt by receipt: the same verdict on every log, honest or not, and the same state after."""

import random
from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from crew_life import HOUR_US, HUB, Life, make_id, make_key, probe
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.evening import MemoryLedger
from ledger.aggregates.broadcast import Broadcast
from ledger.audit import columns, credits, facts
from ledger.audit.dues import Dues
from ledger.audit.helpers import Helpers
from ledger.audit.replay import Replay
from ledger.audit.report import AuditFailure
from ledger.audit.store import Store
from ledger.audit.stream import Entries
from ledger.batch import Batch
from ledger.checks import read_entries, told_in
from ledger.claims import room_bytes
from ledger.event_codec import decode, encode
from ledger.events import Event, NodeProbed, SegmentsServed, SessionObserved, SessionOpened, TicketIssued
from ledger.receipt import Receipt, fold_digests, segment_digest, to_bitmap
from ledger.services import broadcasts, budgets, crew, nodes, streams
from ledger.services.credit_index import CreditIndex
from ledger.ticket import SignedTicket, ViewerClass

NEVER = 10**9


class Crowd:
    """Two nodes and many viewers, some of one network, some of none, some at the friend's own; long broadcasts."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.life = Life(MemoryLedger())  # type: ignore[arg-type]
        life, dice = self.life, self.dice
        life.found()
        for name in ("anna", "ben"):
            life.join(name)
        limits = {
            "prefix_sessions_max": dice.choice([1, 2, 2, 3, 4]),
            "ticket_bytes_max": dice.choice([20_000, 4_000_000_000]),
            "ticket_segments": dice.choice([20, 300, 512]),
            "settle_by_s": dice.choice([600, 48 * 3600]),
            "suspended_signed_paid": dice.choice([0, 1]),
            "node_rate_factor": dice.choice([0, 1, 4]),
            "node_rate_floor": dice.choice([1, 20, 5_000_000]),  # segments here have a kilobyte
            "rate_to_the_byte": dice.choice([0, 1]),
            "floor_most_bp": dice.choice([0, 10_000]),
        }
        crew.change_settings(life.ledger, limits, at_us=life.tick())
        self.streams = [life.stream_id]
        if dice.random() < 0.5:
            self.streams.append(self._stream())
        for _ in range(dice.choice([1, 1, 2])):
            self.evening()
            life.tick(dice.choice([1, 1_000, 4_000]))
            life.settle()
        life.tick(3_600)
        life.settle()

    def _stream(self) -> UUID:
        life = self.life
        stream = streams.register_stream(
            life.ledger,
            slug="second",
            owner_id=make_id("owner"),
            stream_key="second_" + "a" * 32,
            at_us=life.tick(),
        )
        budgets.set_tariff(life.ledger, stream, rate_micro_per_gb=10**12, at_us=life.tick())
        budgets.deposit(life.ledger, stream, amount_micro=500_000_000, reference="second", at_us=life.tick())
        return stream

    def evening(self) -> None:
        """The streams are live one beside the other."""
        life, dice = self.life, self.dice
        live = []
        for stream in self.streams:
            life.stream_id = stream
            life.go_live(0)
            self._publish(dice.choice([30, 500, 700]))
            tickets = [self._ticket() for _ in range(dice.randrange(4, 20))]
            live.append((stream, life.broadcast, tickets))
        for _ in range(dice.randrange(3, 8) * len(live)):
            life.stream_id, life.broadcast, tickets = dice.choice(live)
            self._go_on(tickets)
        for life.stream_id, life.broadcast, _ in live:
            broadcasts.end_broadcast(life.ledger, life.broadcast.id, reason="over", at_us=life.tick())

    def _go_on(self, tickets: list[tuple[SignedTicket, str, str]]) -> None:
        life, dice = self.life, self.dice
        tickets += [self._ticket(dice.choice(tickets)[0]) for _ in range(dice.randrange(2))]
        node = dice.choice(["anna", "ben"])
        some = dice.choices(tickets, k=dice.randrange(1, 16))
        receipts = [self._receipt(*t) for t in some if t[1] == node or dice.random() < 0.1]
        if receipts:
            at_s = life.tick(dice.choice([1, 10, 400])) // 1_000_000
            batch = Batch.sign(make_key(node), at_s - 10, at_s, receipts)
            life.desk.judge_batch(batch.encode(), at_us=life.now_us)
        if dice.random() < 0.2:
            nid = life.nodes[node][1].id
            change = dice.choice([nodes.suspend, nodes.reinstate])
            change(life.ledger, nid, reason="dice", at_us=life.now_us)
        if dice.random() < 0.3:
            nid = life.nodes[node][1].id
            probe(life.ledger, nid, dice, [t for t, _, _ in tickets], at_us=life.now_us)
        if dice.random() < 0.5:
            self._observe(dice.choice(tickets)[0])
        if dice.random() < 0.5:
            self._publish(dice.randrange(1, 30))

    def _publish(self, count: int) -> None:
        for _ in range(0, count, 100):
            self.life.publish(min(count, 100))

    def _observe(self, signed: SignedTicket) -> None:
        """What the hub saw of a plain player, when it is one."""
        ticket, dice = signed.ticket, self.dice
        if ticket.viewer_class is not ViewerClass.PLAIN:
            return
        first = ticket.first_sequence
        seen = range(first, min(ticket.last_sequence + 1, first + dice.randrange(1, 200)))
        self.life.desk.observe(
            ticket.session_id,
            base_sequence=first,
            polled=to_bitmap(first, seen),
            fetched_at_hub=to_bitmap(first, [s for s in seen if dice.random() < 0.1]),
            at_us=self.life.now_us,
        )

    def _ticket(self, again: SignedTicket | None = None) -> tuple[SignedTicket, str, str]:
        """For a new session, or a further one for the session of `again`."""
        life, dice = self.life, self.dice
        life.serial += 1
        node, viewer = dice.choice(["anna", "ben"]), dice.choice(["vera", "walt", None])
        if again is None:
            session_id = make_id(f"session {life.serial}")
            network = dice.choice([b"", b"one!" * 4, b"two!" * 4, dice.randbytes(16)])
            own = life.nodes["anna"][1]
            life.desk.open_session(
                session_id=session_id,
                stream_id=life.stream_id,
                viewer_class=ViewerClass.SIGNING if viewer else ViewerClass.PLAIN,
                viewer_key=make_key(viewer).public_key if viewer else b"",
                prefix_commitment=next(iter(own.facts.networks)) if dice.random() < 0.1 else network,
                account_id=own.friend_id if dice.random() < 0.1 else None,
                at_us=life.tick(),
            )
        else:
            session_id = again.ticket.session_id
            signing = again.ticket.viewer_class is ViewerClass.SIGNING
            viewer = next(
                (v for v in ("vera", "walt") if make_key(v).public_key == again.ticket.viewer_key), None
            )
            assert signing == (viewer is not None)
        life.broadcast = life.ledger.load(Broadcast, life.broadcast.id)
        span = life.broadcast.next_sequence - life.broadcast.first_sequence
        ticket = life.desk.issue_ticket(
            hub_key=HUB,
            ticket_id=make_id(f"ticket {life.serial}"),
            session_id=session_id,
            node=life.nodes[node][1],
            broadcast=life.broadcast,
            first_sequence=life.broadcast.first_sequence + dice.randrange(span),
            nonce=dice.randbytes(16),
            tariff_version=1,
            at_us=life.tick(),
        )
        return ticket, node, viewer or node

    def _receipt(self, ticket: SignedTicket, _node: str, signer: str) -> bytes:
        dice, first = self.dice, ticket.ticket.first_sequence
        signer = "stranger" if dice.random() < 0.05 else signer
        newest = self.life.ledger.load(Broadcast, self.life.broadcast.id).next_sequence
        end = min(newest, ticket.ticket.last_sequence + 1)
        base = max(0, first - dice.choice([0, 0, 0, 1, 63, 64, 511]))
        if dice.random() < 0.05:
            base = dice.choice([0, first + 2_000, (1 << 62)])
        shape = dice.choice(["run", "run", "run", "some", "none", "beyond"])
        wanted = {
            "run": range(first, dice.randrange(first, end + 1)),
            "some": [s for s in range(first, end) if dice.random() < 0.5],
            "none": [],
            "beyond": range(first, end + dice.randrange(2)),
        }[shape]
        sequences = [s for s in wanted if base <= s < base + 512]
        if dice.random() < 0.05:
            sequences.append(base + dice.randrange(512))
        receipt = Receipt(
            ticket_hash=ticket.ticket.hash,
            counter=dice.randrange(9),
            base_sequence=base,
            bitmap=to_bitmap(base, sequences),
            digest=dice.randbytes(32) if dice.random() < 0.05 else self._digest(ticket, sequences),
        )
        return receipt.sign(make_key(signer)).encode()

    def _digest(self, ticket: SignedTicket, sequences: list[int]) -> bytes:
        media, nonce = self.life.media, ticket.ticket.nonce
        return fold_digests(segment_digest(nonce, media[s]) for s in sorted(sequences) if s in media)


@lru_cache(16)
def crowd(seed: int) -> list[bytes]:
    return [r.data for r in Crowd(seed).life.ledger.read(0, NEVER)]


def replayed(entries: Sequence[bytes], in_columns: int, bundle: int = 0) -> tuple[object, ...]:
    """What the replay says, and all that it then knows: event by event, or by bundles of so many."""
    with closing(Store()) as store, closing(Helpers(1)) as helpers:
        replay = Replay(store, helpers, verify_signatures=False, in_columns=in_columns)
        try:
            for start in range(0, len(entries), bundle or 1):
                if bundle:
                    views = [memoryview(e) for e in entries[start : start + bundle]]
                    room = np.zeros(room_bytes(4_096) // 8, np.int64)
                    read = read_entries(views, room)
                    claims = told_in(room, read.claims, read.named)
                    replay.apply_all(
                        Entries(start, views, read.strange, read.admitted, read.deliveries, claims)
                    )
                else:
                    replay.apply(start, entries[start])
                replay.trim()
            replay.finish()
        except AuditFailure as e:
            return e.reason, e.position
        state = replay.saved()
        for part in store._parts:
            part.flush()
        rows = store._connection.execute("SELECT key, value FROM rows ORDER BY key").fetchall()
        return None, state, rows


def tampered(entries: Sequence[bytes], dice: random.Random) -> list[bytes]:
    """One column of one event says something else."""
    served = [i for i, e in enumerate(entries) if isinstance(decode(e), SegmentsServed)]
    at = dice.choice(served)
    event: Any = decode(entries[at])
    name = dice.choice(
        [
            "receipts",
            "receipts",
            "verdicts",
            "caps",
            "units",
            "credited_bytes",
            "batch_header",
            "batch_header",
            "session_of",
            "network_of",
            "at_us",
        ]
    )
    value = getattr(event, name)
    if name == "at_us":
        value += dice.choice([-HOUR_US, HOUR_US, 50 * HOUR_US])
    else:
        i = dice.randrange(len(value))
        value = value[:i] + bytes([value[i] ^ 1 << dice.randrange(8)]) + value[i + 1 :]
    fields = {f: getattr(event, f) for f in event.__struct_fields__} | {name: value}
    try:
        changed = encode(SegmentsServed(**fields))
    except ValueError:  # no event at all
        return list(entries)
    return [*entries[:at], changed, *entries[at + 1 :]]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 15),
    st.integers(0, 10**9) | st.none(),
    st.booleans(),
    st.sampled_from([1, 1, 3, 24]),
    st.sampled_from([0, 20, 100]),
)
def test_columns_say_what_single_receipts_say(
    seed: int, tamper: int | None, tiny: bool, few: int, width: int
) -> None:
    entries = crowd(seed)
    if tamper is not None:
        entries = tampered(entries, random.Random(tamper))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "ROUND", few)
        if tiny:  # everything is on disk, nearly always
            patch.setattr(credits, "BOUND", 3)
            patch.setattr(facts, "SMALL", 2)
            patch.setattr(facts, "BROADCASTS", 0)
        assert replayed(entries, 1, width) == replayed(entries, NEVER)
    if tamper is None:
        assert replayed(entries, 1)[0] is None


def misplaced(entries: Sequence[bytes], dice: random.Random) -> list[bytes]:
    """One event is altered by a byte, missing, there twice, or at another place."""
    at, to = dice.randrange(len(entries)), dice.randrange(len(entries))
    data = entries[at]
    if dice.random() < 0.7:  # sessions and tickets are what bundles are about
        kinds = (SessionOpened, TicketIssued, SessionObserved, NodeProbed)
        some = [i for i, e in enumerate(entries) if isinstance(decode(e), kinds)]
        at, to = dice.choice(some), dice.choice(some)
        data = entries[at]
    rest = [*entries[:at], *entries[at + 1 :]]
    change = dice.choice(["byte", "missing", "twice", "moved"])
    if change == "byte":
        i = dice.randrange(len(data))
        return [
            *entries[:at],
            data[:i] + bytes([data[i] ^ 1 << dice.randrange(8)]) + data[i + 1 :],
            *entries[at + 1 :],
        ]
    if change == "missing":
        return rest
    base = list(entries) if change == "twice" else rest
    return [*base[:to], data, *base[to:]]


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 15), st.integers(0, 10**9) | st.none(), st.sampled_from([7, 40, 256]), st.booleans())
def test_bundles_say_what_single_events_say(seed: int, change: int | None, width: int, tiny: bool) -> None:
    entries = crowd(seed)
    if change is not None:
        dice = random.Random(change)
        entries = dice.choice([tampered, misplaced, misplaced])(entries, dice)
    with pytest.MonkeyPatch.context() as patch:
        if tiny:
            patch.setattr(credits, "BOUND", 3)
            patch.setattr(facts, "SMALL", 2)
            patch.setattr(facts, "BROADCASTS", 0)
        assert replayed(entries, 1, width) == replayed(entries, NEVER)


@settings(max_examples=16, deadline=None)
@given(st.integers(0, 15))
def test_dues_are_those_of_the_credit_index(seed: int) -> None:
    """Also for a part of the log, and for an epoch that is not the next."""
    index, dice = CreditIndex(), random.Random(seed)
    with closing(Store()) as store, closing(Helpers(1)) as helpers:
        replay = Replay(store, helpers, verify_signatures=False)
        for position, data in enumerate(crowd(seed)):
            event: Event = decode(data)
            if dice.random() < 0.1 or not isinstance(event, SessionOpened):
                _same_dues(
                    index, replay._dues, position, event.at_us + dice.choice([0, HOUR_US, 9 * HOUR_US]), dice
                )
            replay.apply(position, data)
            replay.trim()  # nothing waits
            index.apply(position, event)


def _same_dues(index: CreditIndex, dues: Dues, position: int, at_us: int, dice: random.Random) -> None:
    assert index.due(at_us) == dues.due(position, at_us)
    epoch, log_to = index.next_epoch + dice.randrange(3), dice.randrange(position + 1)

    def total(credits_: list[Any]) -> dict[object, tuple[int, int]]:
        found: dict[object, tuple[int, int]] = {}
        for c in credits_:
            key = (c.stream_id, c.node_id, c.friend_id, c.plain, c.late, c.over_rate)
            units, size = found.get(key, (0, 0))
            found[key] = (units + c.units, size + c.credited_bytes)
        return found

    assert total(index.credits(epoch, log_to)) == total(dues.credits(epoch, log_to))
    for rates in (index._rates, dues.state.rates):
        rates._sort_in()  # now, not when there is more
    assert index._rates == dues.state.rates  # forgotten at the same positions


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9_000), st.data())
def test_a_column_is_the_list_of_what_was_appended(count: int, data: st.DataObject) -> None:
    values = [n * n - 7 for n in range(count)]
    with closing(Store()) as store:
        parts = store.table(b"c", bytes, bytes, 2)
        column = facts.Column(parts, b"key")
        for n, value in enumerate(values):
            column.append(value)
            if n % 1_000 == 999:
                store.trim()
                column = facts.Column(parts, b"key", *column.saved())
        assert len(column) == count
        assert column.tail.tolist() == values[column.start :]
        if count:
            for at in data.draw(st.lists(st.integers(-count, count - 1), max_size=20)):
                assert column[at] == values[at]
