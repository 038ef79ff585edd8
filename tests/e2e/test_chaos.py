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
    assert report.fold.units > 50
    assert report.acknowledged > 20
    recovered = [injury.listed_s for injury in report.injuries]
    assert all(seconds is not None and seconds < 20 for seconds in recovered), report.injuries
