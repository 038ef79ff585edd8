"""What digests must be, however they are asked for."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from ledger.receipt import fold_digests, segment_digest
from ledger.receipt_digests import ReceiptDigests

RENDITIONS, NONCES, KNOWN = [UUID(int=1), UUID(int=2)], [b"a" * 16, b"b" * 16], range(3, 40)


def digest_of(rendition: UUID, nonce: bytes, sequence: int) -> bytes | None:
    return segment_digest(nonce, b"%d %d" % (rendition.int, sequence)) if sequence in KNOWN else None


claims = st.one_of(
    st.builds(lambda start, length: range(start, start + length), st.integers(0, 20), st.integers(1, 25)),
    st.sets(st.integers(0, 45), min_size=1).map(sorted),
)


@given(st.lists(st.tuples(st.sampled_from(RENDITIONS), st.sampled_from(NONCES), claims), max_size=30))
def test_the_digest_of_a_receipt_is_the_fold_of_its_segments(
    asked: list[tuple[UUID, bytes, list[int]]],
) -> None:
    digests = ReceiptDigests(digest_of, runs=3)
    for rendition, nonce, sequences in asked:
        known = [d for s in sequences if (d := digest_of(rendition, nonce, s)) is not None]
        expected = fold_digests(known) if len(known) == len(sequences) else None
        assert digests.expected(rendition, nonce, sequences) == expected


def test_a_segment_that_is_known_later_counts_from_then_on() -> None:
    known = {0: b"0" * 32}
    digests = ReceiptDigests(lambda _rendition, _nonce, sequence: known.get(sequence))
    assert digests.expected(RENDITIONS[0], NONCES[0], range(2)) is None
    known[1] = b"1" * 32
    assert digests.expected(RENDITIONS[0], NONCES[0], range(2)) == fold_digests([b"0" * 32, b"1" * 32])
