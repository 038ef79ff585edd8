"""Estimates against the settlements that come after them, on a real ledger."""

import random
from collections import defaultdict
from uuid import UUID

import pytest
from crew_life import HOUR_US, T0, Life

from ledger.application import Ledger
from ledger.events import EpochSettled
from ledger.money import budget_account
from ledger.receipt import to_bitmap
from ledger.services import budgets
from ledger.services.credit_index import CreditIndex
from ledger.services.estimate import Estimate, Portion, estimate


def settled_since(ledger: Ledger, position: int) -> tuple[dict[UUID, Portion], dict[UUID, Portion]]:
    """What the settlements since then paid, the obvious way."""
    friends: dict[UUID, Portion] = defaultdict(Portion)
    streams: dict[UUID, Portion] = defaultdict(Portion)
    for entry in ledger.read(position, 50_000):
        if isinstance(entry.event, EpochSettled):
            for line in entry.event.lines:
                friends[line.friend_id].credited_bytes += line.credited_bytes
                friends[line.friend_id].amount_micro += line.amount_micro
                streams[line.stream_id].credited_bytes += line.credited_bytes
            for transfer in entry.event.transfers:
                for posting in transfer.postings:
                    for stream_id, portion in streams.items():
                        if posting.account == budget_account(stream_id):
                            portion.amount_micro -= posting.amount_micro
    return dict(friends), dict(streams)


def carry(life: Life, dice: random.Random) -> None:
    """Some minutes in which two nodes carry the stream to a few viewers, one of them in VLC."""
    life.publish(10)
    for name in ("anna", "ben"):
        ticket = life.ticket(name, f"viewer of {name}")
        sequences = sorted(dice.sample(range(10), dice.randrange(1, 10)))
        life.batch(name, life.receipt(ticket, f"viewer of {name}", sequences))
    plain = life.ticket("ben")
    life.batch("ben", life.receipt(plain, "ben", list(range(6))))
    if dice.random() < 0.7:  # otherwise what it claims waits
        base = plain.ticket.first_sequence
        polled, fetched = (to_bitmap(base, range(base, base + n)) for n in (8, dice.randrange(1, 3)))
        life.desk.observe(
            plain.ticket.session_id,
            base_sequence=base,
            polled=polled,
            fetched_at_hub=fetched,
            at_us=life.tick(),
        )


@pytest.mark.parametrize("budget_is_short", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_an_estimate_is_what_the_settlement_then_pays(
    ledger: Ledger, seed: int, budget_is_short: bool
) -> None:
    life, dice, index = Life(ledger), random.Random(seed), CreditIndex()
    life.found()
    life.join("anna")
    life.join("ben")
    life.go_live()
    if budget_is_short:
        budgets.withdraw(
            ledger, life.stream_id, amount_micro=495_000_000, reference="back", at_us=life.tick()
        )
    paid_micro = 0
    for _ in range(4):
        for _ in range(dice.randrange(3)):
            carry(life, dice)
        made = estimate(ledger, index, at_us=life.now_us)
        assert made is not None
        assert estimate(ledger, index, at_us=life.now_us) == made  # nothing is taken out by asking
        assert made.ends_us > life.now_us
        life.now_us = made.ends_us
        life.settle()
        assert settled_since(ledger, made.position) == (made.friends, made.streams)
        paid_micro += sum(portion.amount_micro for portion in made.friends.values())
        empty = estimate(ledger, index, at_us=life.now_us)
        assert empty == Estimate(ledger.size(), made.ends_us + HOUR_US, {}, {})
    assert paid_micro > 0


def test_there_is_no_estimate_without_a_crew_or_beside_another_settlement(ledger: Ledger) -> None:
    assert estimate(ledger, CreditIndex(), at_us=T0) is None
    life = Life(ledger)
    life.found()
    life.join("anna")
    life.join("ben")
    life.go_live()
    carry(life, random.Random(1))

    def settle_in_between() -> None:
        if life.now_us < 2 * HOUR_US + T0:
            life.now_us = 2 * HOUR_US + T0
            life.settle()

    assert estimate(ledger, CreditIndex(), at_us=life.now_us, alive=settle_in_between) is None
