"""A dishonest hub settles honest credits in another epoch than theirs, at another price: the audit finds it."""

from pathlib import Path

import pytest
from crew_life import HOUR_US, LOG, Life
from forged_log import ORIGIN, VKEY

from ledger.aggregates.base import Aggregate
from ledger.aggregates.book import Book
from ledger.application import Ledger
from ledger.audit import Report, audit
from ledger.events import EpochSettled
from ledger.ids import BOOK_ID
from ledger.services import budgets
from ledger.services.settle import catch_up, draft
from ledger.settlement import settle
from ledger.tlog.publisher import Publisher

WORK = (4, 5)  # epochs in which segments are delivered; in the second the rate is half of that


@pytest.fixture
def life(ledger: Ledger) -> Life:
    """Deliveries of two epochs with a price each, none of them settled. The epochs before are empty."""
    life = Life(ledger)
    life.found()
    genesis_us = life.now_us
    life.join("anna")
    for epoch in WORK:
        life.now_us = genesis_us + epoch * HOUR_US
        life.go_live()
        ticket = life.ticket("anna", "vera")
        assert life.batch("anna", life.receipt(ticket, "vera", [0, 1, 2])) == ["accepted"]
        budgets.set_tariff(ledger, life.stream_id, rate_micro_per_gb=10**12 // 2, at_us=life.tick())
    life.now_us = genesis_us + 7 * HOUR_US
    return life


def audited(life: Life, folder: Path) -> Report:
    Publisher(life.ledger, folder, LOG, ORIGIN).publish(at_us=life.tick())
    return audit(folder, vkey=str(VKEY))


def settle_as(life: Life, epoch: int, log_to: int) -> None:
    """As the hub would, had that epoch been due."""
    book = life.ledger.load(Book, BOOK_ID)
    catch_up(life.ledger, life.index)
    book.settle_epoch(
        epoch,
        log_to=log_to,
        pages=draft(life.index, book, epoch=epoch, log_to=log_to),
        at_us=life.now_us,
    )
    life.ledger.save(book)


def test_settled_as_they_are_due_they_pass(life: Life, tmp_path: Path) -> None:
    assert life.settle() == [*WORK, 6]
    assert audited(life, tmp_path / "log").problem is None


@pytest.mark.parametrize("epoch", [3, 4, 6])
def test_the_credits_of_two_epochs_are_not_settled_as_one(life: Life, tmp_path: Path, epoch: int) -> None:
    settle_as(life, epoch, life.ledger.size())
    problem = audited(life, tmp_path / "log").problem
    assert problem is not None
    assert "epoch" in problem.reason


@pytest.mark.parametrize("epoch", [3, 5])
def test_credits_are_not_settled_in_another_epoch(life: Life, tmp_path: Path, epoch: int) -> None:
    """Not before theirs, nor later, which makes them late."""
    catch_up(life.ledger, life.index)
    due = life.index.due(life.now_us)
    assert due is not None
    assert due[0] == WORK[0]
    settle_as(life, epoch, due[1])
    problem = audited(life, tmp_path / "log").problem
    assert problem is not None
    assert "epoch" in problem.reason


@pytest.mark.parametrize("epoch", [6, 7, 8])
def test_a_receipt_that_comes_while_the_hub_settles_accuses_nobody(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """Judged in an earlier epoch or this one, it stands in the log before the settlement that has not read it."""
    ticket, genesis_us = life.ticket("anna", "vera"), life.now_us - 7 * HOUR_US
    life.settle()
    life.now_us = genesis_us + 9 * HOUR_US
    save = life.ledger.save

    def late(*aggregates: Aggregate) -> list[int]:
        if isinstance(aggregates[0], Book) and life.ledger.save is not save:
            monkeypatch.setattr(life.ledger, "save", save)
            life.now_us = genesis_us + epoch * HOUR_US + HOUR_US // 2
            assert life.batch("anna", life.receipt(ticket, "vera", [3])) == ["accepted"]
            life.now_us = genesis_us + 9 * HOUR_US
        return save(*aggregates)

    monkeypatch.setattr(life.ledger, "save", late)
    assert life.settle() == [8]
    life.now_us += HOUR_US
    assert life.settle() == [9]
    assert audited(life, tmp_path / "log").problem is None


@pytest.mark.parametrize("honest", [True, False])
def test_late_delivery_is_held_to_the_price_it_was_made_at(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    ticket = life.ticket("anna", "vera")
    life.settle()
    budgets.set_tariff(life.ledger, life.stream_id, rate_micro_per_gb=10**6, at_us=life.tick())
    life.now_us += HOUR_US
    assert life.batch("anna", life.receipt(ticket, "vera", [3])) == ["accepted"]
    life.now_us += HOUR_US
    if not honest:
        monkeypatch.setattr(
            "ledger.services.settle.settle",
            lambda *of, **rules: settle(*of, **rules | {"late_tariffs": None}),
        )
    life.settle()
    last = next(r.event for r in reversed(life.ledger.read(0, 9_000)) if isinstance(r.event, EpochSettled))
    price = 10**12 // 2 if honest else 10**6
    assert {(x.reason, x.rate_micro_per_gb) for x in last.lines if x.units} == {("delivery_late", price)}
    problem = audited(life, tmp_path / "log").problem
    assert (problem is None) is honest
