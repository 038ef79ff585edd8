"""The adversary lab in small: what each kind of cheat earns, held against what honest friends lose, which is nothing.

`python -m bench.adversaries` is the same with more viewers; docs/adr/0024 has its table.
"""

from collections.abc import Callable

import pytest

from bench.adversaries.__main__ import SMALL
from bench.adversaries.attackers import FAULTS
from bench.adversaries.lab import Result, run

# Hundredths of a percent of what an honest friend earns in the same evening, with the caps in force.
MOST = {
    "forged receipts and tickets": 0,
    "moved tickets": 0,
    "node that serves nothing": 0,
    "own account": 0,
    "own network, sent from elsewhere": 0,
    "Sybils behind one /24": 0,
    "colluding viewer, signing": 10_000,
    "colluding players, plain": 5_000,
}


@pytest.fixture(scope="module")
def results(
    postgres_url: str, fresh_databases: Callable[[], str], in_database: Callable[[str, str], str]
) -> dict[str, Result]:
    made = run(lambda: in_database(postgres_url, fresh_databases()), SMALL, seed=7)
    return {result.name: result for result in made}


def test_no_honest_friend_loses_anything_whatever_anybody_does(results: dict[str, Result]) -> None:
    assert [r for r in results.values() if not r.holds] == []


def test_what_is_nobodys_fault_costs_nobody_anything(results: dict[str, Result]) -> None:
    assert {name: results[name].after_bp for name in FAULTS} == dict.fromkeys(FAULTS, 10_000)


@pytest.mark.parametrize("name", MOST)
def test_a_cheat_earns_no_more_than_this(results: dict[str, Result], name: str) -> None:
    assert results[name].after_bp <= MOST[name]


def test_the_caps_take_from_cheats_what_the_same_cheats_had_without_them(results: dict[str, Result]) -> None:
    for name in ("colluding viewer, signing", "colluding players, plain", "Sybils behind one /24"):
        assert results[name].before_bp > 20_000 > 2 * results[name].after_bp
