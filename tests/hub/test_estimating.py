"""How often estimates are made."""

from collections.abc import Iterator

from api.estimates import Estimates
from api.valkey import connect
from hub.estimating import EVERY_S, PART_OF_TIME, SHOWN_S, Estimating
from ledger.application import Ledger
from ledger.services import crew
from ledger.services.credit_index import CreditIndex
from ledger.services.estimate import Estimate

AT_US = 1_800_000_000_000_000


class Told(Estimates):
    def __init__(self, redis_url: str) -> None:
        super().__init__(connect(redis_url))
        self.for_s: list[int] = []

    def share(self, made: Estimate, *, for_s: int) -> None:
        self.for_s.append(for_s)
        super().share(made, for_s=for_s)


def test_the_longer_an_estimate_takes_the_more_rarely_one_is_made(ledger: Ledger, valkey_url: str) -> None:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3600, at_us=AT_US)
    now_s, takes_s = 100.0, 0.01

    def clock() -> Iterator[float]:  # looked at before and after
        nonlocal now_s
        while True:
            yield now_s
            now_s += takes_s
            yield now_s

    ticks = clock()
    told, index = Told(valkey_url), CreditIndex()
    estimating = Estimating(ledger, told, clock_s=lambda: next(ticks))
    estimating.step(index, at_us=AT_US, settled=False)
    assert told.for_s == [2 * EVERY_S + SHOWN_S]
    now_s = 100.0 + EVERY_S
    takes_s = 3.0
    estimating.step(index, at_us=AT_US, settled=False)
    assert told.for_s[1:] == [2 * PART_OF_TIME * takes_s + SHOWN_S]


def test_between_two_estimates_only_a_settlement_brings_another(ledger: Ledger, valkey_url: str) -> None:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3600, at_us=AT_US)
    now_s = 100.0
    told, index = Told(valkey_url), CreditIndex()
    estimating = Estimating(ledger, told, clock_s=lambda: now_s)
    for at_s, settled, made in [
        (100.0, False, 1),
        (100.0 + EVERY_S - 0.1, False, 1),
        (100.0 + EVERY_S - 0.1, True, 2),
        (100.0 + EVERY_S, False, 2),
        (100.0 + 2 * EVERY_S, False, 3),
    ]:
        now_s = at_s
        estimating.step(index, at_us=AT_US, settled=settled)
        assert len(told.for_s) == made
