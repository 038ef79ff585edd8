"""Runs each attack on two evenings, without caps and with them, and holds both against evenings without the attack.

Invariant: a result says `holds` only when no honest friend lost a byte of credit or a micro-unit of what was paid for
it, whatever the attacker did; when a fault that is nobody's cost nobody anything; and when what can be refused was.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from bench.adversaries.attackers import CHEATS, FAULTS, PRICES, Attack
from bench.adversaries.world import UNCAPPED, Income, Size, World

ROUNDING_MICRO = 3  # of a settlement's lines: the largest remainder goes to one of several


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    before_bp: (
        int  # the attacker's income without caps, in hundredths of a percent of what one honest friend earns
    )
    after_bp: int  # and with the caps in force
    honest_delivery_lost_micro: int  # with the caps in force, all honest friends together: must be nothing
    honest_floor_lost_bp: int  # how much of their income moved to the attacker with the floor share
    verdicts: Mapping[str, int]
    holds: bool


def run(
    databases: Callable[[], str],
    size: Size,
    seed: int,
    caps: Mapping[str, int] | None = None,
    only: Collection[str] = (),
) -> Iterator[Result]:
    """`databases` gives the URL of a fresh migrated database each time it is called; `caps` are the settings to try,
    beside the defaults; `only`: names of attacks, none for all."""
    rules = {False: UNCAPPED, True: caps or {}}
    quiet = {capped: _evening(databases(), size, seed, rules[capped], None) for capped in rules}
    for name, attack in {**CHEATS, **FAULTS, **PRICES}.items():
        if only and name not in only:
            continue
        before = _evening(databases(), size, seed, rules[False], attack)
        after = _evening(databases(), size, seed, rules[True], attack)
        yield _result(name, before, after, quiet, fault=name in FAULTS)


@dataclass(frozen=True, slots=True)
class _Evening:
    honest: dict[UUID, Income]
    attacker_micro: int
    verdicts: Mapping[str, int]

    @property
    def honest_mean_micro(self) -> int:
        return sum(i.micro for i in self.honest.values()) // len(self.honest)


def _evening(url: str, size: Size, seed: int, settings: Mapping[str, int], attack: Attack | None) -> _Evening:
    world = World(url, size, settings=settings, seed=seed)
    try:
        act, friends = attack(world) if attack else ((lambda _: None), [])
        incomes = world.evening(act)
        honest = {f.friend_id: incomes[f.friend_id] for f in world.honest}
        nothing = Income(0, 0, 0)
        theirs = {f.friend_id for f in friends}
        return _Evening(honest, sum(incomes.get(f, nothing).micro for f in theirs), dict(world.verdicts))
    finally:
        world.close()


def _result(
    name: str, before: _Evening, after: _Evening, quiet: Mapping[bool, _Evening], *, fault: bool
) -> Result:
    mean = {capped: quiet[capped].honest_mean_micro for capped in quiet}
    lost = bytes_lost = floor = 0
    for friend_id, was in quiet[True].honest.items():
        now = after.honest[friend_id]
        bytes_lost += was.credited_bytes - now.credited_bytes
        lost += max(0, was.delivery_micro - now.delivery_micro - ROUNDING_MICRO)
        floor += max(0, was.floor_micro - now.floor_micro)
    after_bp = after.attacker_micro * 10_000 // mean[True]
    whole = not fault or abs(after_bp - 10_000) <= 1
    return Result(
        name=name,
        before_bp=before.attacker_micro * 10_000 // mean[False],
        after_bp=after_bp,
        honest_delivery_lost_micro=lost,
        honest_floor_lost_bp=floor * 10_000 // (mean[True] * len(quiet[True].honest)),
        verdicts=after.verdicts,
        holds=bytes_lost == 0 and lost == 0 and whole,
    )
