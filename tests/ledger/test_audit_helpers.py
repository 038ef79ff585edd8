"""Helpers: the same answers as here, from another process; and many bundles in memory that is shared."""

import random
from contextlib import closing
from pathlib import Path

import pytest
from forged_log import altered, find, publish_entries
from test_audit_columns import crowd

from bench.evening import evening, publish
from ledger.audit import Problem, audit, helpers, stream
from ledger.audit.helpers import HelperDied, Helpers, Program
from ledger.checks import Signed, Verify, first_failure
from ledger.event_codec import decode
from ledger.events import SegmentsServed, TicketIssued
from ledger.keys import KeyPair
from ledger.tlog.files import remove_tree

DOMAIN = b"test\n"
KEY = KeyPair(b"k" * 32)


def check(n: int, *, good: bool = True) -> Signed:
    body = b"body %d" % n
    return Signed(KEY.public_key, DOMAIN, body, KEY.sign(DOMAIN, body if good else b"other"))


@pytest.fixture(params=["as it starts here", "a program of its own"])
def _each_start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "a program of its own":
        monkeypatch.setattr(helpers, "_start", Program)


@pytest.mark.usefixtures("_each_start")
def test_a_helper_answers_as_this_process_would() -> None:
    with closing(Helpers(2)) as some:
        bad = [check(n, good=n != 7) for n in range(20)]
        answers = [some.verify(Verify(checks)) for checks in ([check(1)], bad, [])]
        assert [a.result(30) for a in answers] == [first_failure([check(1)]), (7, 0), (-1, 0)]


@pytest.mark.usefixtures("_each_start")
def test_a_helper_that_dies_is_an_error_and_no_answer() -> None:
    with closing(Helpers(1)) as some:
        assert some.verify(Verify([check(1)])).result(30) == (-1, 0)
        some._processes[0].kill()
        with pytest.raises(HelperDied):
            some.verify(Verify([check(1)])).result(30)


def test_a_log_of_many_bundles_is_read_by_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is wrong in any of them is found where this process finds it."""
    entries = crowd(3)
    events = [decode(e) for e in entries]
    dice = random.Random(1)
    monkeypatch.setattr(stream, "ALONE", 0)
    assert len(entries) < 256
    logs = {"honest": entries}
    for kind, changes in ((TicketIssued, {"ticket": bytes(254)}), (SegmentsServed, {"network_limit": 99})):
        at = find(events, kind, -1)
        logs[kind.__name__] = [*entries[:at], altered(events[at], **changes), *entries[at + 1 :]]
    at = dice.randrange(len(entries))
    logs["garbage"] = [*entries[:at], b"\xc1", *entries[at + 1 :]]
    for name, changed in logs.items():
        folder = tmp_path / name
        publish_entries(folder, changed)
        helped = audit(folder, jobs=2)
        monkeypatch.setattr(stream, "ALONE", 6)
        alone = audit(folder)
        monkeypatch.setattr(stream, "ALONE", 0)
        assert (helped.problem, helped.root) == (alone.problem, alone.root)
        assert (helped.problem is None) == (name == "honest")
    tile = tmp_path / "honest" / "tile" / "entries"
    remove_tree(tile)
    lost = audit(tmp_path / "honest", jobs=1).problem
    assert lost is not None
    assert lost.reason == "the file is missing"


def test_what_is_loaded_here_and_there_is_one_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers and the replay take bundles from each other. Of what is wrong in several, the first is told."""
    folder = tmp_path / "log"
    publish(evening(1, crowd=3, signed=False), folder)
    bundles = sorted(p for p in (folder / "tile" / "entries").rglob("*") if p.is_file())
    assert len(bundles) > 5

    def found(alone: int) -> tuple[Problem | None, object]:
        monkeypatch.setattr(stream, "ALONE", alone)
        report = audit(folder, jobs=2, verify_signatures=False)
        return report.problem, report.counts

    honest = found(100)
    assert honest[0] is None
    for _ in range(3):
        assert found(0) == honest
    flipped = bytearray(bundles[3].read_bytes())
    flipped[-1] ^= 1  # the entry is another, and of the same length
    for path, data in (
        (bundles[4], b"\0\1"),
        (bundles[3], flipped),
        (bundles[2], None),
        (bundles[1], bytes(70_000)),
    ):
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        alone = found(100)
        assert alone[0] is not None
        last = 255 if data is flipped else 0
        assert alone[0].position == 256 * bundles.index(path) + last
        for _ in range(2):
            assert found(0) == alone
