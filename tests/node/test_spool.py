"""The spool: whatever is cut off, killed or full, an acknowledged receipt is there again."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.keys import KeyPair
from ledger.receipt import Receipt, SignedReceipt, to_bitmap
from relay.node import spool_file
from relay.node.spool import COMPACT_ABOVE_BYTES, MAX_PER_TICKET, SPOOL_FILE, Conflicting, Spool, SpoolFull
from relay.node.spool_file import MAGIC, Kind, body_hash, covers, record, recover

VIEWER = KeyPair(b"v" * 32)


def receipt(ticket: int, sequences: set[int], counter: int = 1) -> SignedReceipt:
    body = Receipt(
        ticket_hash=ticket.to_bytes(32, "big"),
        counter=counter,
        base_sequence=0,
        bitmap=to_bitmap(0, sequences),
        digest=bytes(32),
    )
    return SignedReceipt(body, bytes(64))


@given(st.integers(0, 600), st.sets(st.integers(0, 511)), st.integers(0, 1200), st.sets(st.integers(0, 511)))
def test_a_receipt_covers_another_exactly_when_it_claims_all_of_it(base_a, a, base_b, b):
    def make(base, offsets):
        bitmap = to_bitmap(base, (base + o for o in offsets))
        return SignedReceipt(replace(receipt(1, {0}).receipt, base_sequence=base, bitmap=bitmap), bytes(64))

    expected = {base_b + o for o in b} <= {base_a + o for o in a}
    assert covers(make(base_a, a), make(base_b, b)) is expected


def test_every_offset_of_a_spool_file_is_a_safe_place_to_be_cut():
    data = MAGIC + b"".join(record(Kind.RECEIPT, receipt(n, {1}).encode()) for n in range(3))
    size = len(record(Kind.RECEIPT, receipt(0, {1}).encode()))
    for cut in range(len(data) + 1):
        assert len(recover(data[:cut]).receipts) == max(0, cut - len(MAGIC)) // size


_actions = st.lists(
    st.tuples(st.integers(0, 3), st.frozensets(st.integers(0, 6), min_size=1), st.booleans()), max_size=12
)


@settings(max_examples=40, deadline=None)
@given(_actions, st.binary(max_size=300), st.lists(st.floats(0, 1), max_size=8))
def test_any_prefix_of_a_spool_file_recovers_every_record_written_whole(actions, garbage, cuts):
    data, ends = MAGIC, [(len(MAGIC), {})]
    live: dict[
        bytes, SignedReceipt
    ] = {}  # the slow model: a receipt gives way only to one that claims as much
    for counter, (ticket, sequences, answered) in enumerate(actions):
        new = receipt(ticket, set(sequences), counter)
        data += record(Kind.RECEIPT, new.encode())
        same = [n for n, r in live.items() if r.receipt.ticket_hash == new.receipt.ticket_hash]
        for name in same:
            if set(live[name].receipt.sequences()) <= set(sequences):
                del live[name]
        live[body_hash(new)] = new
        ends.append((len(data), dict(live)))
        if answered:
            data += record(Kind.DONE, body_hash(new))
            live.pop(body_hash(new))
            ends.append((len(data), dict(live)))
    boundaries = [end + d for end, _ in ends for d in (-1, 0, 1)]
    for cut in [*boundaries, *(round(c * len(data)) for c in cuts)]:
        if len(MAGIC) <= cut <= len(data):
            found = recover(data[:cut])
            assert (found.good_bytes, found.receipts) == [e for e in ends if e[0] <= cut][-1]
    for tail in (garbage, bytes(len(garbage))):
        assert recover(data + tail).receipts == live or len(tail) > 200


def test_a_torn_tail_at_every_offset_is_cut_and_writing_goes_on(tmp_path):
    async def main() -> None:
        first, second, third = (receipt(n, {n}) for n in (1, 2, 3))
        whole = MAGIC + b"".join(record(Kind.RECEIPT, r.encode()) for r in (first, second))
        last = len(record(Kind.RECEIPT, second.encode()))
        for torn in range(0, last, 7):
            (tmp_path / SPOOL_FILE).write_bytes(whole[: len(whole) - last + torn])
            spool = Spool(tmp_path)
            assert spool.latest(9) == [first]
            await spool.add(third)
            await spool.close()
            assert list(recover((tmp_path / SPOOL_FILE).read_bytes()).receipts.values()) == [first, third]

    asyncio.run(main())


def test_a_newer_receipt_replaces_and_a_smaller_one_takes_nothing_back(tmp_path):
    async def main() -> None:
        spool = Spool(tmp_path)
        await spool.add(receipt(1, {1, 2}, 1))
        await spool.add(receipt(1, {1, 2, 3}, 2))
        assert spool.latest(9) == [receipt(1, {1, 2, 3}, 2)]
        await spool.add(receipt(1, {1}, 3))
        assert spool.latest(9) == [receipt(1, {1, 2, 3}, 2)]
        for i in range(1, MAX_PER_TICKET):  # a restarted node's own claims start anew
            await spool.add(receipt(1, {9 + i}, 3 + i))
        assert spool.pending == MAX_PER_TICKET
        with pytest.raises(Conflicting):
            await spool.add(receipt(1, {50}, 9))
        spool.answered(spool.latest(9))
        assert spool.pending == 0
        await spool.add(receipt(1, {1, 2, 3}, 2))  # answered already: nothing to send
        assert spool.pending == 0
        await spool.close()
        again = Spool(tmp_path)
        assert again.pending == 0
        await again.close()

    asyncio.run(main())


def test_all_waiting_receipts_share_one_fsync(tmp_path, monkeypatch):
    calls: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(handle), fsync(handle))[1])

    async def main() -> None:
        spool = Spool(tmp_path)
        calls.clear()
        await asyncio.gather(*(spool.add(receipt(n, {1})) for n in range(500)))
        assert len(calls) <= 3
        assert len(recover((tmp_path / SPOOL_FILE).read_bytes()).receipts) == 500
        await spool.close()

    asyncio.run(main())


def test_the_file_is_compacted_after_verdicts_and_loses_nothing(tmp_path):
    async def main() -> None:
        spool = Spool(tmp_path)
        kept = receipt(999_999, {1})
        await spool.add(kept)
        for start in range(0, 3000, 100):
            group = [receipt(n, {1}) for n in range(start, start + 100)]
            await asyncio.gather(*(spool.add(r) for r in group))
            spool.answered(group)
        await spool.add(receipt(5, {1, 2}))
        assert spool.file_bytes < COMPACT_ABOVE_BYTES + 60_000
        await spool.close()
        found = recover((tmp_path / SPOOL_FILE).read_bytes())
        assert list(found.receipts.values()) == [kept, receipt(5, {1, 2})]

    asyncio.run(main())


@pytest.mark.parametrize("persisted", [False, True])
def test_a_failed_fsync_promises_nothing_and_the_next_write_starts_a_new_file(
    tmp_path, monkeypatch, persisted
):
    real = os.fsync

    def broken(handle: int) -> None:
        if persisted:
            real(handle)
        raise OSError(5, "Input/output error")

    async def main() -> None:
        spool = Spool(tmp_path)
        await spool.add(receipt(1, {1}))
        monkeypatch.setattr("relay.node.spool.os.fsync", broken)
        with pytest.raises(SpoolFull):
            await spool.add(receipt(2, {1}))
        monkeypatch.setattr("relay.node.spool.os.fsync", real)
        inode = (tmp_path / SPOOL_FILE).stat().st_ino
        await spool.add(receipt(3, {1}))
        assert (tmp_path / SPOOL_FILE).stat().st_ino != inode
        await spool.close()
        again = Spool(tmp_path)
        assert again.latest(9) == [receipt(1, {1}), receipt(3, {1})]
        await again.close()

    asyncio.run(main())


_FULL_DISK = """
import asyncio, sys, resource
from pathlib import Path
sys.path[:0] = [{here!r}]
from test_spool import receipt
from relay.node.spool import Spool, SpoolFull
async def main():
    folder = Path({folder!r})
    spool = Spool(folder)
    await spool.add(receipt(0, {{1}}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.file_bytes + 300, resource.RLIM_INFINITY))
    kept, refused = [0], 0
    for n in range(1, 6):
        try:
            await spool.add(receipt(n, {{1}}))
            kept.append(n)
        except SpoolFull:
            refused += 1
    assert refused >= 3 and len(kept) >= 2, (kept, refused)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await spool.add(receipt(9, {{1}}))
    kept.append(9)
    await spool.close()
    again = Spool(folder)
    assert again.latest(20) == [receipt(n, {{1}}) for n in kept]
    await again.close()
asyncio.run(main())
"""


def test_a_full_disk_refuses_and_loses_nothing(tmp_path):
    code = _FULL_DISK.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_damage_in_the_middle_keeps_a_copy_and_what_is_sound(tmp_path):
    async def main() -> None:
        records = [record(Kind.RECEIPT, receipt(n, {1}).encode()) for n in range(6)]
        data = bytearray(MAGIC + b"".join(records))
        data[len(MAGIC) + len(records[0]) + 30] ^= 1
        (tmp_path / SPOOL_FILE).write_bytes(data)
        spool = Spool(tmp_path)
        assert spool.latest(9) == [receipt(0, {1})]
        await spool.close()
        assert (tmp_path / SPOOL_FILE).with_suffix(".damaged").read_bytes() == data

    asyncio.run(main())


@given(st.binary(max_size=600))
def test_any_bytes_recover_without_raising(data):
    assert spool_file.recover(data).receipts == {}
    assert spool_file.recover(MAGIC + data).good_bytes >= len(MAGIC)
