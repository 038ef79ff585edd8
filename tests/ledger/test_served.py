"""Deliveries read by their layout: what is read is what the decoder says, and only where it is the one encoding."""

import random
from uuid import UUID

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_audit_columns import crowd

from ledger.claims import NAME, Claims, Ints, Told, Writer, room_bytes, told_by
from ledger.event_codec import decode_stored, encode
from ledger.events import SegmentsServed
from ledger.judged import in_order
from ledger.receipt import SIGNED_BYTES
from ledger.served import NETWORK_BYTES, Delivery, Said, read, sort_out
from ledger.verdict import CAPS, VERDICTS

NUMBERS = [0, 1, 127, 128, 255, 256, 65_535, 65_536, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]


def event(dice: random.Random) -> SegmentsServed:
    count = dice.choice([1, 2, 3, 15, 16, 20, 200, 0])
    sessions, networks = dice.choice([1, 2, 15, 16, 17, 200]), dice.choice([1, 2, 15, 16, 17, 200])
    lengths = dice.choice([[16], [16], [0], [16, 0], [16, 16, 16, 17]])

    def one_of(values: int) -> bytes:
        return bytes([dice.randrange(values) for _ in range(count)])

    return SegmentsServed(
        originator_id=UUID(bytes=dice.randbytes(16)),
        originator_version=dice.choice(NUMBERS),
        at_us=dice.choice([*NUMBERS, -1]),
        node_id=UUID(bytes=dice.randbytes(16)),
        batch_header=dice.randbytes(dice.choice([147, 147, 147, 0, 146])),
        first_sequence=dice.choice([*NUMBERS, -1]),
        network_limit=dice.choice(NUMBERS),
        sessions=dice.randbytes(16 * sessions),
        networks=tuple([dice.randbytes(dice.choice(lengths)) for _ in range(networks)]),
        receipts=dice.randbytes(SIGNED_BYTES * count),
        indices=dice.randbytes(count),
        session_of=one_of(sessions),
        network_of=one_of(networks),
        verdicts=one_of(len(VERDICTS)),
        caps=one_of(len(CAPS)),
        units=dice.randbytes(2 * count),
        credited_bytes=dice.randbytes(8 * count),
    )


def same(delivery: Delivery, said: Said, decoded: SegmentsServed) -> None:
    names = set(SegmentsServed.__struct_fields__) & set(Delivery.__struct_fields__)
    assert len(names) == 8
    for name in names:
        assert getattr(delivery, name) == getattr(decoded, name)
    assert delivery.whole() == decoded
    assert delivery.receipts == decoded.receipts
    expected = Said.of(decoded)
    assert expected is not None
    assert said._replace(receipts=bytes(said.receipts)) == expected


@given(st.integers(0, 10**9))
def test_what_is_read_is_what_the_decoder_says(seed: int) -> None:
    dice = random.Random(seed)
    one = event(dice)
    data = encode(one)
    found = read(3, memoryview(data))
    usual = one.verdicts and one.at_us >= 0 and one.first_sequence >= 0 and len(one.batch_header) != 146
    assert (found is not None) == bool(usual and set(map(len, one.networks)) <= {0, NETWORK_BYTES})
    if found is None:
        return
    delivery, said = found
    assert delivery.index == 3
    passed = msgspec.msgpack.decode(
        msgspec.msgpack.Encoder(uuid_format="bytes").encode(delivery), type=Delivery
    )
    assert passed == delivery
    passed.entry = memoryview(data)
    same(passed, said, one)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_what_is_altered_is_read_only_when_it_is_the_one_encoding_of_another_event(
    seed: int, at: int
) -> None:
    dice = random.Random(seed)
    data = bytearray(encode(event(dice)))
    for _ in range(dice.choice([1, 1, 2])):
        place = dice.choice(
            [at % len(data), dice.randrange(min(400, len(data))), max(0, len(data) - 1 - at % 100)]
        )
        change = dice.choice(["byte", "byte", "bit", "cut", "more"])
        if change == "byte":
            data[place] = dice.choice([*range(0xC0, 0xE0), dice.randrange(256)])
        elif change == "bit":
            data[place] ^= 1 << dice.randrange(8)
        elif change == "cut":
            del data[place : place + dice.choice([1, 1, 2, 1_000])]
        else:
            data[place:place] = dice.randbytes(dice.choice([1, 2]))
        if not data:
            return
    found = read(0, memoryview(data))
    if found is None:
        return
    delivery, said = found
    decoded = decode_stored(bytes(data))
    assert isinstance(decoded, SegmentsServed)
    assert encode(decoded) == bytes(data)
    delivery.entry = memoryview(data)
    same(delivery, said, decoded)


@given(st.integers(0, 10**9))
def test_what_stands_twice_is_found_among_many(seed: int) -> None:
    dice = random.Random(seed)
    pool = [dice.randbytes(16) for _ in range(5)]
    pool += [dice.randbytes(12) + one[12:] for one in pool[:2]]  # with the same end
    read_, events = [], []
    for _ in range(dice.choice([1, 2, 6])):
        some = [dice.sample(pool, k=dice.randrange(1, 6)) for _ in range(2)]
        if dice.random() < 0.2:
            some[0].append(dice.choice(some[0]))
        if dice.random() < 0.2:
            some[1].append(dice.choice([*some[1], b"", bytes(16)]))
        count = max(map(len, some))
        columns_ = [bytes([min(n, len(ids) - 1) for n in range(count)]) for ids in some]
        if dice.random() < 0.1:
            columns_[0] = columns_[0][::-1]
        one = msgspec.structs.replace(
            event(random.Random(seed)),
            at_us=1,
            first_sequence=1,
            batch_header=b"",
            sessions=b"".join(some[0]),
            networks=tuple(some[1]),
            session_of=columns_[0],
            network_of=columns_[1],
            receipts=bytes(SIGNED_BYTES * count),
            indices=bytes(count),
            verdicts=bytes(count),
            caps=bytes(count),
            units=bytes(2 * count),
            credited_bytes=bytes(8 * count),
        )
        found = read(0, memoryview(encode(one)))
        assert found is not None
        read_.append(found)
        events.append(one)
    sort_out([delivery for delivery, _ in read_], [said for _, said in read_])
    for (delivery, _), one in zip(read_, events, strict=True):
        expected = in_order(one.sessions, one.session_of, one.networks, one.network_of)
        assert delivery.in_order == expected


@given(st.integers(0, 10**9))
def test_numbers_of_many_events_are_those_of_each(seed: int) -> None:
    dice = random.Random(seed)
    told = [decode_stored(data) for data in crowd(dice.randrange(4))]
    events = [e for e in told if isinstance(e, SegmentsServed)]
    events += [event(dice) for _ in range(3)]  # of no version, nearly always
    dice.shuffle(events)
    some = [(e, said) for e in events if (said := Said.of(e)) is not None and e.verdicts]
    room = np.zeros(room_bytes(sum(len(e.verdicts) for e, _ in some)) // 8, np.int64)
    writer = Writer(room, bits=dice.choice([1, 4, 12]))
    cut = dice.randrange(len(some) + 1)
    counts = writer.add([said for _, said in some[:cut]]) + writer.add([said for _, said in some[cut:]])
    claims, end = Claims(room, writer.named), 0
    for (one, _), count in zip(some, counts, strict=True):
        assert count in (0, len(one.verdicts))
        begin, end = end, end + count
        for here, alone in zip(columns(Told(claims, begin, end)), columns(told_by(one)), strict=True):
            assert (here == alone).all()
    assert len({name.tobytes() for name in claims.names.T}) == writer.named


def columns(told: Told) -> tuple[Ints, Ints]:
    """What is claimed, and by whom."""
    rows = told.claims.between(told.begin, told.end)
    return rows[NAME + 1 :], told.claims.names.take(rows[NAME], axis=1)
