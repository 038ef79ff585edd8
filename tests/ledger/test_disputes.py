"""Disputes and corrections on a real ledger, as people make them."""

import json
from pathlib import Path

import pytest
from crew_life import LOG, Life
from forged_log import ORIGIN
from test_payout_command import Shell

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.application import Ledger, NotFound
from ledger.audit import audit
from ledger.events import EpochSettled
from ledger.ids import BOOK_ID
from ledger.services import disputes, settle
from ledger.tlog.publisher import Publisher


@pytest.fixture
def settled(ledger: Ledger) -> tuple[Life, int, EpochSettled]:
    """Two friends with pending earnings."""
    life = Life(ledger)
    life.found()
    for name in ("anna", "ben"):
        life.join(name)
    life.go_live()
    for name, viewer in (("anna", "vera"), ("ben", "walt")):
        assert life.batch(name, life.receipt(life.ticket(name, viewer), viewer, [0, 1, 2])) == ["accepted"]
    life.tick(3600)
    assert life.settle()
    at = next(r for r in ledger.read(0, 10_000) if isinstance(r.event, EpochSettled))
    assert isinstance(at.event, EpochSettled)
    return life, at.position, at.event


def release(life: Life) -> None:
    settle.release_due_holds(life.ledger, hold_s=0, at_us=life.tick(5 * 86_400))


def balance(life: Life, name: str, state: str) -> int:
    friend_id = life.nodes[name][1].friend_id
    return life.ledger.load(Book, BOOK_ID).balance(f"friend:{friend_id}:{state}")


def assert_audited(life: Life, folder: Path) -> None:
    Publisher(life.ledger, folder, LOG, ORIGIN).publish(at_us=life.tick())
    report = audit(folder)
    assert report.problem is None
    book = life.ledger.load(Book, BOOK_ID)
    assert report.balances == {a: m for a, m in sorted(book.accounts.items()) if m}


def test_only_the_disputed_line_waits_and_upheld_it_goes_back_to_the_budget(
    settled: tuple[Life, int, EpochSettled], tmp_path: Path
) -> None:
    life, position, event = settled
    line = event.lines[0]
    name = "anna" if line.friend_id == life.nodes["anna"][1].friend_id else "ben"
    budget = life.ledger.load(Book, BOOK_ID).budget(life.stream_id)
    earned = balance(life, name, "pending")
    made = disputes.open_dispute(life.ledger, position, 0, reason="fewer bytes", at_us=life.tick())
    assert (made.number, made.state) == (1, "open")
    release(life)
    assert balance(life, name, "pending") == line.amount_micro
    assert balance(life, name, "available") == earned - line.amount_micro
    assert balance(life, "ben" if name == "anna" else "anna", "pending") == 0
    disputes.decide_dispute(life.ledger, 1, uphold=True, reason="probe says so", at_us=life.tick())
    assert balance(life, name, "pending") == 0
    assert life.ledger.load(Book, BOOK_ID).budget(life.stream_id) == budget + line.amount_micro
    with pytest.raises(DomainError, match="no open dispute"):
        disputes.decide_dispute(life.ledger, 1, uphold=False, reason="again", at_us=life.tick())
    assert_audited(life, tmp_path)


@pytest.mark.parametrize("before_release", [True, False])
def test_a_rejected_dispute_gives_the_line_back(
    settled: tuple[Life, int, EpochSettled], tmp_path: Path, before_release: bool
) -> None:
    life, position, event = settled
    earned = {name: balance(life, name, "pending") for name in life.nodes}
    for number in range(len(event.lines)):  # all of the epoch
        disputes.open_dispute(life.ledger, position, number, reason="why", at_us=life.tick())
    if not before_release:
        release(life)
        assert {name: balance(life, name, "pending") for name in life.nodes} == earned
    for dispute in disputes.disputes(life.ledger):
        disputes.decide_dispute(life.ledger, dispute.number, uphold=False, reason="no", at_us=life.tick())
    release(life)
    assert {name: balance(life, name, "available") for name in life.nodes} == earned
    assert_audited(life, tmp_path)


def test_what_is_not_held_is_not_disputed(settled: tuple[Life, int, EpochSettled]) -> None:
    life, position, _ = settled
    strangers = {"friend_id": life.stream_id, "opened_by": "friend"}
    with pytest.raises(NotFound):
        disputes.open_dispute(life.ledger, position, 0, reason="x", at_us=life.tick(), **strangers)
    with pytest.raises(NotFound):
        disputes.open_dispute(life.ledger, 0, 0, reason="x", at_us=life.tick())
    with pytest.raises(DomainError, match="reason"):
        disputes.open_dispute(life.ledger, position, 0, reason="line\nbreak", at_us=life.tick())
    disputes.open_dispute(life.ledger, position, 0, reason="x", at_us=life.tick())
    with pytest.raises(DomainError, match="disputed before"):
        disputes.open_dispute(life.ledger, position, 0, reason="x", at_us=life.tick())
    release(life)
    with pytest.raises(DomainError, match="still held"):
        disputes.open_dispute(life.ledger, position, 1, reason="x", at_us=life.tick())


def test_a_correction_is_booked_once_and_audited(
    settled: tuple[Life, int, EpochSettled], tmp_path: Path
) -> None:
    life, position, _ = settled
    release(life)
    friend = f"friend:{life.nodes['anna'][1].friend_id}:available"
    before = balance(life, "anna", "available")

    def adjust(source: str, target: str, amount: int, reference: str) -> bool:
        return disputes.adjust(
            life.ledger,
            source=source,
            target=target,
            amount_micro=amount,
            reference=reference,
            reason="counted by hand",
            rests_on=(position,),
            at_us=life.tick(),
        )

    assert adjust(f"budget:{life.stream_id}", friend, 500, "c1")
    assert not adjust(f"budget:{life.stream_id}", friend, 500, "c1")
    with pytest.raises(DomainError, match="another movement"):
        adjust("fees", friend, 500, "c1")
    assert adjust(friend, "fees", 200, "c2")
    assert balance(life, "anna", "available") == before + 300
    with pytest.raises(DomainError, match="negative"):
        adjust(friend, "fees", 10**12, "c3")
    assert_audited(life, tmp_path)


def test_the_commands(
    settled: tuple[Life, int, EpochSettled],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    database_url: str,
    tmp_path: Path,
) -> None:
    life, position, event = settled
    run = Shell(monkeypatch, capsys, database_url, tmp_path)
    size = life.ledger.size()
    run("open", f"{position}:1", "--reason", "why", "--dry-run", group="dispute")
    assert life.ledger.size() == size
    opened = json.loads(run("open", f"{position}:1", "--reason", "why", "--json", group="dispute"))
    assert (opened["number"], opened["amount_micro"]) == (1, event.lines[1].amount_micro)
    size = life.ledger.size()
    for decision in ("reject", "uphold"):
        assert "dry run" in run(decision, "1", "--reason", "fine", "--dry-run", group="dispute")
    assert life.ledger.size() == size
    assert "rejected" in run("reject", "1", "--reason", "fine", group="dispute")
    listed = json.loads(run("list", "--json", group="dispute"))["disputes"]
    assert [(d["state"], d["decision"]) for d in listed] == [("rejected", "fine")]
    budget, size = f"budget:{life.stream_id}", life.ledger.size()
    common = ("0.1", "--reference", "a1", "--reason", "gift", "--rests-on", str(position))
    assert "dry run" in run("fees", budget, *common, "--dry-run", group="adjust")
    assert life.ledger.size() == size
    assert "booked" in run("fees", budget, *common, group="adjust")
    assert "before" in run("fees", budget, *common, group="adjust")
    run("external", budget, *common, group="adjust", code=2)
