"""Why this amount: every line that any life of a crew brings about is derived again, from the log alone."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from crew_life import LOG, Life, live_fully
from forged_log import ORIGIN
from hypothesis import given
from hypothesis import strategies as st
from test_audit_lives import RandomLife
from test_settlement import STREAMS, Case, cases

from hub.cli import main
from ledger.aggregates.book import Book
from ledger.application import Ledger
from ledger.events import EpochSettled, Event, HoldsReleased, PayoutLineReturned, Posting, Transfer
from ledger.ids import BOOK_ID
from ledger.money import BP
from ledger.services.explain import (
    DISPUTE_EVENTS,
    Earned,
    ExplanationFailed,
    Moved,
    NothingToExplain,
    explain,
    explain_line,
    statement,
)
from ledger.services.explain_log import LedgerLog, explain_recorded
from ledger.settlement import NO_TARIFF, derive, entries_of, pages
from ledger.tlog.publisher import Publisher


class Kept:
    """A log in memory, so that explaining each of its lines is quick."""

    def __init__(self, events: list[Event]) -> None:
        self.kept = events

    def events(self, start: int, end: int | None) -> Iterator[tuple[int, Event]]:
        yield from list(enumerate(self.kept))[start:end]


def whole_log(ledger: Ledger) -> list[Event]:
    return [event for _, event in LedgerLog(ledger).events(0, None)]


def check_arithmetic(made: Earned) -> None:
    """The steps, done again by hand."""
    s, t = made.steps, made.tariff
    assert s.priced_micro == s.stream_weight * t.rate_micro_per_gb // 10**13
    assert s.gross_micro == min(s.priced_micro, s.budget_micro)
    assert s.scaled_to_budget is (s.priced_micro > s.budget_micro)
    assert s.fee_bp_of_gross_micro == s.gross_micro * t.fee_bp // BP
    assert s.pool_micro == s.gross_micro - s.fee_bp_of_gross_micro
    assert s.rest_micro == s.pool_micro - s.floor_pool_micro
    assert made.reason == "floor_share" or s.remainder_micro in (0, 1)
    assert s.uncapped_micro == s.quota_micro + s.remainder_micro
    if made.reason == "floor_share":
        assert s.quota_micro == s.floor_pool_micro // s.nodes
        assert s.amount_micro == s.uncapped_micro
    else:
        byte_bp = {"plain": t.plain_bp, "over_": 0}.get(made.reason[:5], BP)
        assert s.weight == made.credited_bytes * byte_bp
        assert s.quota_micro == (s.rest_micro * s.weight // s.stream_weight if s.stream_weight else 0)
        assert s.amount_micro <= s.uncapped_micro
    if s.plain_most_micro is not None:
        assert s.amount_micro <= s.plain_most_micro
    assert s.amount_micro == made.amount_micro
    assert not any(isinstance(getattr(s, f), float) for f in s.__slots__)


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_every_line_of_any_life_is_explained_and_comes_to_what_was_recorded(
    ledger: Ledger, seed: int
) -> None:
    RandomLife(ledger, seed).run(200)
    log = Kept(whole_log(ledger))
    earned = released = returned = 0
    for position, event in log.events(0, None):
        for n, line in enumerate(event.lines if isinstance(event, EpochSettled) else ()):
            made = explain(log, position, n)
            assert isinstance(made, Earned)
            assert (made.amount_micro, made.reason) == (line.amount_micro, line.reason)
            check_arithmetic(made)
            if made.receipts is not None and line.reason != "floor_share":
                assert sum(r.credited_bytes for r in made.receipts) == line.credited_bytes
                assert all(r.position < event.log_to for r in made.receipts)
            quick = explain_recorded(ledger, position, n)
            assert isinstance(quick, Earned)
            assert (quick.steps, quick.tariff) == (made.steps, made.tariff)
            assert quick.receipts in (None, made.receipts)
            earned += 1
        if isinstance(event, DISPUTE_EVENTS):
            why = explain(log, position)
            assert isinstance(why, Moved)
            assert [p.amount_micro for p in why.parts] == [why.amount_micro] == [event.amount_micro]
            assert explain_recorded(ledger, position, 0) == why
        if isinstance(event, PayoutLineReturned):
            back = explain(log, position)
            assert isinstance(back, Moved)
            assert (back.note, back.payout_line) == ("account closed", event.line)
            paid, *earlier = back.parts
            assert paid.reason == "payout_confirmed"
            assert sum(p.amount_micro for p in (*earlier, back)) <= paid.amount_micro
            assert explain_recorded(ledger, position, 0) == back
            returned += 1
        for n, _ in enumerate(event.transfers if isinstance(event, HoldsReleased) else ()):
            moved = explain(log, position, n)
            assert isinstance(moved, Moved)
            assert sum(p.amount_micro for p in moved.parts) == moved.amount_micro
            assert explain_recorded(ledger, position, n) == moved
            released += 1
    assert earned > 1
    assert released > 0
    assert returned > 0


@given(cases, st.sampled_from(STREAMS))
def test_any_settlement_is_explained_line_by_line(case: Case, stream: object) -> None:
    credits, tariffs, budgets = case
    mine = [c for c in credits if c.stream_id == stream and c.units]
    if not mine:
        return
    assert mine[0].stream_id == stream
    tariff, budget = tariffs.get(mine[0].stream_id, NO_TARIFF), budgets.get(mine[0].stream_id, 0)
    derivation = derive(mine[0].stream_id, mine, tariff, budget)
    for page in pages(entries_of(derivation)):
        event = EpochSettled(
            originator_id=mine[0].stream_id,
            originator_version=1,
            at_us=1,
            epoch=1,
            page=1,
            pages=1,
            log_from=0,
            log_to=1,
            lines=page.lines,
            transfers=page.transfers,
        )
        for n in range(len(page.lines)):
            made = explain_line(
                [(c, tariff) for c in mine],
                event,
                1,
                n,
                budget_micro=budget,
                floor_most_bp=0,
                tariff_at=None,
                receipts=None,
                spot_checks=None,
            )
            check_arithmetic(made)


@pytest.fixture
def lived(ledger: Ledger, tmp_path: Path) -> Life:
    return live_fully(ledger, tmp_path, lambda _: None)


def test_a_friends_statement_adds_up_to_what_the_book_says(lived: Life) -> None:
    friend_id = lived.nodes["anna"][1].friend_id
    lines = statement(LedgerLog(lived.ledger), friend_id)
    book = lived.ledger.load(Book, BOOK_ID)
    earned = sum(x.amount_micro for x in lines if x.reason.startswith(("delivery", "plain", "floor")))
    states = ("pending", "available", "in_flight", "paid")
    assert earned == sum(book.balance(f"friend:{friend_id}:{s}") for s in states)
    assert {"hold_released", "payout_reserved", "payout_confirmed"} <= {x.reason for x in lines}
    assert [(x.position, x.line) for x in lines] == sorted((x.position, x.line) for x in lines)


def test_an_amount_that_the_log_does_not_give_is_not_explained(lived: Life) -> None:
    events = whole_log(lived.ledger)
    at, settled = next((n, x) for n, x in enumerate(events) if isinstance(x, EpochSettled))
    more = msgspec.structs.replace(settled.lines[0], amount_micro=settled.lines[0].amount_micro + 1)
    events[at] = msgspec.structs.replace(settled, lines=(more, *settled.lines[1:]))
    with pytest.raises(ExplanationFailed, match=f"at {at}:0"):
        explain(Kept(events), at, 0)


def test_more_than_was_paid_is_not_explained(ledger: Ledger) -> None:
    RandomLife(ledger, 11).run(200)
    events = whole_log(ledger)
    at, returned = next((n, x) for n, x in enumerate(events) if isinstance(x, PayoutLineReturned))
    source, target = returned.transfer.postings
    postings = (Posting(source.account, -(10**12)), Posting(target.account, 10**12))
    transfer = Transfer(returned.transfer.reason, postings)
    events[at] = msgspec.structs.replace(returned, transfer=transfer)
    with pytest.raises(ExplanationFailed, match=f"came back at {at}:0"):
        explain(Kept(events), at, 0)


def test_what_is_no_statement_line_has_no_explanation(lived: Life) -> None:
    log = LedgerLog(lived.ledger)
    for position, line in ((0, 0), (10**9, 0)):
        with pytest.raises(NothingToExplain):
            explain(log, position, line)
    settled = next(n for n, x in log.events(0, None) if isinstance(x, EpochSettled))
    with pytest.raises(NothingToExplain, match="lines, from 0"):
        explain(log, settled, 99)


def test_the_command_explains_from_published_files_alone(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "log"
    publisher = Publisher(ledger, folder, LOG, ORIGIN)
    life = live_fully(ledger, tmp_path, lambda at_us: publisher.publish(at_us=at_us))
    settled = next(n for n, x in enumerate(whole_log(ledger)) if isinstance(x, EpochSettled))

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["streamrp2p", "explain", *arguments, "--from", str(folder)])
        with pytest.raises(SystemExit) as done:
            main()
        assert (done.value.code or 0) == code
        out, err = capsys.readouterr()
        return out or err

    shown = run(f"{settled}:0")
    assert "gross" in shown
    assert "receipts (position" in shown
    made = json.loads(run(str(settled), "--json"))
    assert made["amount_micro"] == made["steps"]["amount_micro"]
    listed = json.loads(run("--friend", str(life.nodes["anna"][1].friend_id), "--json"))
    assert settled in {x["position"] for x in listed}
    assert "no statement line" in run("0", code=4)
    run("x", code=2)
