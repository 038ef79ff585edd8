"""The cache of folded aggregates: nobody shares one, nothing that failed is lent, threads find one each."""

from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from ledger.aggregates.stream import Stream
from ledger.store.cache import COPIES, AggregateCache


def stream(stream_id: UUID) -> Stream:
    made = Stream(stream_id)
    made.register(slug="main", key_sha256=bytes(32), owner_id=uuid4(), at_us=1)
    made.collect_events()
    return made


def test_threads_that_want_the_same_one_at_once_find_one_each_the_next_time() -> None:
    cache, stream_id = AggregateCache(), uuid4()
    for _ in range(COPIES + 2):
        cache.put(stream(stream_id))
    held = [cache.take(Stream, stream_id) for _ in range(COPIES)]
    assert len({id(one) for one in held}) == COPIES
    assert None not in held
    assert cache.take(Stream, stream_id) is None


def test_one_that_failed_or_was_changed_and_not_recorded_is_lent_to_nobody() -> None:
    for spoil in (lambda s: setattr(s, "torn", True), lambda s: s.archive(reason="x", at_us=2)):
        cache, stream_id = AggregateCache(), uuid4()
        cache.put(stream(stream_id))
        spoil(cache.take(Stream, stream_id))
        assert cache.take(Stream, stream_id) is None
        cache.put(stream(stream_id))
        assert cache.take(Stream, stream_id) is not None


@given(st.lists(st.tuples(st.sampled_from(["take", "drop", "put", "tear"]), st.integers(0, 2)), max_size=40))
def test_nobody_holds_what_another_holds(steps: list[tuple[str, int]]) -> None:
    cache, ids = AggregateCache(maxsize=2), [UUID(int=n) for n in range(3)]
    held: list[Stream] = []
    for what, number in steps:
        if what == "take":
            found = cache.take(Stream, ids[number])
            if found is not None:
                assert all(found is not one for one in held)
                assert not found.torn
                held.append(found)
            found = None
        elif what == "put":
            cache.put(stream(ids[number]))
        elif held:
            one = held.pop()
            one.torn = one.torn or what == "tear"
            one = None
