"""Sessions and tickets read by the bundle: named only where one reading by itself says the same."""

import random
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from ledger.event_codec import decode_stored, encode
from ledger.events import Event, SessionOpened, StreamWentLive, TicketIssued
from ledger.ids import ticket_record_id
from ledger.layout import SESSIONS, TICKETS, admitted, record_ids
from ledger.ticket import SignedTicket, Ticket, ViewerClass

T0_US = 1_800_000_000_000_000
SECOND = 1_000_000


def session(dice: random.Random) -> SessionOpened:
    key = UUID(bytes=dice.randbytes(16))
    plain = dice.random() < 0.5
    return SessionOpened(
        originator_id=key if dice.random() < 0.9 else UUID(bytes=dice.randbytes(16)),
        originator_version=dice.choice([1, 1, 1, 2]),
        at_us=dice.choice([T0_US, T0_US, T0_US, 5, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, -1]),
        session_id=key,
        stream_id=UUID(bytes=dice.randbytes(16)),
        viewer_class=2 if plain else dice.choice([1, 1, 1, 7, 300]),
        viewer_key=dice.randbytes(dice.choice([32, 32, 31])) if not plain else b"",
        prefix_commitment=dice.randbytes(dice.choice([16, 16, 16, 0, 17])),
        account_id=UUID(bytes=dice.randbytes(16)) if dice.random() < 0.5 else None,
    )


def ticket(dice: random.Random) -> TicketIssued:
    first = dice.choice([0, 100, (1 << 64) - 513])
    one = Ticket(
        viewer_class=dice.choice([ViewerClass.SIGNING, ViewerClass.PLAIN]),
        hub_key_id=dice.randbytes(8),
        ticket_id=UUID(bytes=dice.randbytes(16)),
        session_id=UUID(bytes=dice.randbytes(16)),
        stream_id=UUID(bytes=dice.randbytes(16)),
        rendition_id=UUID(bytes=dice.randbytes(16)),
        viewer_key=dice.randbytes(32),
        node_key=dice.randbytes(32),
        first_sequence=first,
        last_sequence=first + dice.choice([0, 300, 511]),
        settle_by_s=dice.choice([T0_US // SECOND, (1 << 64) - 1]),
        tariff_version=1,
        byte_budget=dice.choice([0, 10**9, (1 << 64) - 1]),
        nonce=dice.randbytes(16),
    )
    signed = SignedTicket(one, dice.randbytes(64)).encode()
    if dice.random() < 0.2:
        at = dice.choice([0, 1, 160, 168])  # version, class, first and last sequence
        signed = signed[:at] + bytes([dice.randrange(256)]) + signed[at + 1 :]
    right = dice.random() < 0.9
    return TicketIssued(
        originator_id=ticket_record_id(one.hash) if right else UUID(bytes=dice.randbytes(16)),
        originator_version=dice.choice([1, 1, 1, 2]),
        at_us=dice.choice([T0_US, T0_US, 5, 1 << 32]),
        session_id=one.session_id if dice.random() < 0.9 else UUID(bytes=dice.randbytes(16)),
        broadcast_id=UUID(bytes=dice.randbytes(16)),
        node_id=UUID(bytes=dice.randbytes(16)),
        ticket=signed,
    )


def other(dice: random.Random) -> StreamWentLive:
    key = UUID(bytes=dice.randbytes(16))
    return StreamWentLive(originator_id=key, originator_version=1, at_us=T0_US, broadcast_id=key)


def altered(data: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.6:
        return data
    at = dice.randrange(len(data))
    return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]


def read_alone(data: bytes) -> Event | None:
    try:
        event = decode_stored(data)
    except ValueError:
        return None
    return event if encode(event) == data else None


@given(st.integers(0, 10**9))
def test_what_is_named_is_what_one_reading_says(seed: int) -> None:
    dice = random.Random(seed)
    events = [dice.choice([session, session, ticket, ticket, other])(dice) for _ in range(40)]
    entries = [altered(encode(e), dice) for e in events]
    found = admitted([memoryview(e) for e in entries])
    for i in found.sessions:
        event: Any = read_alone(entries[i])
        assert isinstance(event, SessionOpened)
        assert event.originator_version == 1
        assert event.originator_id == event.session_id
        viewer_class, layout = SESSIONS[len(entries[i])]
        row = layout.read([entries[i]])[0]
        assert viewer_class == event.viewer_class
        assert int(row["at_us"]) == event.at_us
        assert row["session"].tobytes() == event.session_id.bytes
        assert row["stream"].tobytes() == event.stream_id.bytes
        assert row["network"].tobytes() == event.prefix_commitment
        assert (row["viewer_key"].tobytes() if event.viewer_key else b"") == event.viewer_key
        assert (row["account"].tobytes() if event.account_id else None) == (
            event.account_id.bytes if event.account_id else None
        )
    for i in found.tickets:
        event = read_alone(entries[i])
        assert isinstance(event, TicketIssued)
        assert event.originator_version == 1
        one = SignedTicket.decode(event.ticket)
        assert event.originator_id == ticket_record_id(one.ticket.hash)
        assert event.session_id == one.ticket.session_id
        row = TICKETS.read([entries[i]])[0]
        assert row["ticket"].tobytes() == event.ticket
        assert row["broadcast"].tobytes() == event.broadcast_id.bytes
        assert row["node"].tobytes() == event.node_id.bytes
        assert int(row["ticket"]["first"]) == one.ticket.first_sequence
        assert int(row["ticket"]["byte_budget"]) == one.ticket.byte_budget


@given(st.integers(0, 10**9))
def test_every_ordinary_session_and_ticket_is_named(seed: int) -> None:
    dice = random.Random(seed)
    events = [dice.choice([session, ticket])(dice) for _ in range(20)]
    found = admitted([memoryview(encode(e)) for e in events])
    for i, event in enumerate(events):
        if event.originator_version != 1 or not 1 << 32 <= event.at_us < 1 << 63:
            continue
        if isinstance(event, SessionOpened):
            usual = event.viewer_class == 2 or (event.viewer_class == 1 and len(event.viewer_key) == 32)
            if usual and len(event.prefix_commitment) == 16 and event.originator_id == event.session_id:
                assert i in found.sessions
            continue
        try:
            one = SignedTicket.decode(event.ticket).ticket
        except ValueError:
            continue
        if event.originator_id == ticket_record_id(one.hash) and event.session_id == one.session_id:
            assert i in found.tickets


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=5))
def test_ids_of_tickets_follow_from_their_hashes(hashes: list[bytes]) -> None:
    assert [i.tobytes() for i in record_ids(hashes)] == [ticket_record_id(h).bytes for h in hashes]
