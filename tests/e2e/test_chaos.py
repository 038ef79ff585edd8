"""kill -9 of everything while a broadcast runs: nothing acknowledged is lost, nothing counts twice."""

import asyncio
from pathlib import Path

import pytest
from storm import storm


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_broadcast_survives_the_death_of_every_process(folder: Path) -> None:
    report = asyncio.run(storm(folder, seed=7, seconds=36.0))
    assert report.problems == []
    assert report.fold is not None
    assert report.fold.units > 20
    assert report.acknowledged > 20
    # How fast is measured by bench/chaos.py: here the next deaths come before the first is recovered from, and the
    # machine may have other work.
    slow = [one for one in report.injuries if one.listed_s is None or one.listed_s > 60]
    assert slow == []
