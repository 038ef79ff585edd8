"""The judge's arithmetic on whole bitmaps against loops over single segments."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from ledger.judge import Manifest, claimed_units, to_sequences, units_of
from ledger.receipt import Receipt, to_bitmap
from ledger.ticket import Ticket, ViewerClass

FAR = (1 << 63) - 1 - 512


def make_ticket(first: int, last: int) -> Ticket:
    return Ticket(
        viewer_class=ViewerClass.SIGNING,
        hub_key_id=bytes(8),
        ticket_id=UUID(int=1),
        session_id=UUID(int=2),
        stream_id=UUID(int=3),
        rendition_id=UUID(int=4),
        viewer_key=bytes(32),
        node_key=bytes(32),
        first_sequence=first,
        last_sequence=last,
        settle_by_s=1,
        tariff_version=1,
        byte_budget=1,
        nonce=bytes(16),
    )


def make_receipt(base: int, offsets: set[int]) -> Receipt:
    bitmap = to_bitmap(base, [base + i for i in offsets])
    return Receipt(ticket_hash=bytes(32), counter=1, base_sequence=base, bitmap=bitmap, digest=bytes(32))


@given(
    first=st.integers(0, 700),
    sizes=st.lists(st.integers(0, 5), max_size=60),
    base=st.one_of(st.integers(0, 800), st.just(FAR)),
    offsets=st.sets(st.one_of(st.integers(0, 40), st.integers(500, 511))),
    ticket_first=st.integers(0, 800),
    ticket_segments=st.integers(1, 100),
)
def test_a_receipt_claims_what_its_ticket_covers_and_was_published_or_nothing(
    first: int, sizes: list[int], base: int, offsets: set[int], ticket_first: int, ticket_segments: int
) -> None:
    published = dict(enumerate(sizes, first))
    ticket = make_ticket(ticket_first, ticket_first + ticket_segments - 1)
    receipt, manifest = make_receipt(base, offsets), Manifest(first, sizes)
    claimed = claimed_units(receipt, ticket, manifest)
    if all(ticket.covers(s) and s in published for s in receipt.sequences()):
        assert claimed is not None
        assert list(to_sequences(claimed, first)) == receipt.sequences()
        assert manifest.total_bytes(claimed) == sum(published[s] for s in receipt.sequences())
    else:
        assert claimed is None


@given(st.lists(st.integers(0, 9), min_size=1, max_size=700), st.data())
def test_a_manifest_of_the_past_knows_no_later_segment(sizes: list[int], data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(sizes) + 5))
    earlier, full = Manifest(0, sizes).before(end), Manifest(0, sizes[:end])
    assert earlier.next == full.next
    units = data.draw(st.integers(0, (1 << full.next) - 1))
    assert (
        earlier.total_bytes(units) == full.total_bytes(units) == sum(sizes[s] for s in to_sequences(units, 0))
    )


def test_a_bitmap_may_begin_before_the_broadcast_when_its_first_bits_are_empty() -> None:
    receipt = make_receipt(90, {10, 12})
    assert list(to_sequences(units_of(receipt, 100), 100)) == [100, 102]
