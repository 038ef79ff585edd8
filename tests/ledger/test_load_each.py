"""Aggregates loaded together are those loaded one by one, from memory or not; events are found by name."""

from uuid import uuid4

from ledger.aggregates.base import Aggregate
from ledger.application import Ledger
from ledger.events import Event, NodeWentOffline


class Notes(Aggregate):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.seen: list[str] = []

    def apply(self, event: Event) -> None:
        assert isinstance(event, NodeWentOffline)
        self.seen.append(event.reason)


def write(ledger: Ledger, notes: Notes, *reasons: str) -> None:
    for reason in reasons:
        notes.trigger(NodeWentOffline, at_us=1, reason=reason)
    ledger.save(notes)


def test_all_are_as_of_now_whoever_wrote_and_whatever_is_in_memory(ledger: Ledger, database_url: str) -> None:
    ids = [uuid4() for _ in range(4)]
    for n, aggregate_id in enumerate(ids[:3]):
        write(ledger, Notes(aggregate_id), f"first {n}")
    other = Ledger(database_url)
    try:
        for aggregate_id in ids[1:3]:
            write(other, other.load(Notes, aggregate_id), "second", "third")
        for cold in (ledger, Ledger(database_url)):
            for _ in range(2):
                loaded = cold.load_each(*((Notes, i) for i in ids))
                assert [
                    a and (a.id, a.version, a.seen) for a in loaded if isinstance(a, Notes) or a is None
                ] == [  # type: ignore[redundant-expr]
                    (ids[0], 1, ["first 0"]),
                    (ids[1], 3, ["first 1", "second", "third"]),
                    (ids[2], 3, ["first 2", "second", "third"]),
                    None,
                ]
                del loaded
            if cold is not ledger:
                cold.close()
    finally:
        other.close()


def test_what_is_held_is_not_given_to_another(ledger: Ledger) -> None:
    held = Notes(uuid4())
    write(ledger, held, "one")
    [mine] = ledger.load_each((Notes, held.id))
    [yours] = ledger.load_each((Notes, held.id))
    assert mine is not None
    assert yours is not None
    assert mine is not yours
    assert mine is not held


def test_events_are_found_by_originator_and_version_in_the_order_asked_for(ledger: Ledger) -> None:
    one, two = Notes(uuid4()), Notes(uuid4())
    write(ledger, one, "a", "b")
    write(ledger, two, "c")
    found = ledger.find([(two.id, 1), (one.id, 3), (one.id, 2), (uuid4(), 1)])
    assert [(r.position, r.event.reason) for r in found if isinstance(r.event, NodeWentOffline)] == [
        (2, "c"),
        (1, "b"),
    ]
    assert ledger.find([]) == []
