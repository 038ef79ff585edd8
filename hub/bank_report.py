"""What a bank's status report and the operator say of a payout's lines: what is taken for an answer, and what is told.

Invariant: whatever a report says of a line is an answer, or is told by line; nothing that cannot be is taken. A dry run
records nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import typer

from hub.operator import Console, micro_to_text
from hub.payout_shown import number_of
from hub.rails import payouts_folder
from ledger.aggregates.payout import Payout
from ledger.rails import Answer, Outcome, Rail
from ledger.rails.pain001 import BankAnswerError, News, Pain001Rail, Remark, Said, payments_in
from ledger.rails.pain001_file import end_to_end_id
from ledger.rails.pain002 import MAX_REPORT_BYTES, Report, StatusReportError, read_report
from ledger.services import returns

VERIFICATION_FAILED = 5


@dataclass(slots=True)
class Heard:
    told: dict[str, Answer] = field(default_factory=dict)  # in a dry run: what the rail would answer, by key
    came_back: dict[int, Said] = field(default_factory=dict)  # by line
    remarks: dict[int, Remark] = field(default_factory=dict)  # by line
    others: list[str] = field(default_factory=list)  # of payments that are not this payout's
    exit_code: int = 0  # that this calls for

    def wrong(self, line: int, text: str, exit_code: int = 1) -> None:
        self.remarks[line] = Remark(text, wrong=True)
        self.exit_code = max(self.exit_code, exit_code)

    def tell(self) -> None:
        """On stderr: what is on stdout stays what it was."""
        texts = [f"line {line}: {remark.text}" for line, remark in sorted(self.remarks.items())]
        for text in texts + self.others:
            typer.echo(f"streamrp2p: {text}", err=True)


def hear(
    at: Console,
    rail: Rail,
    payout: Payout,
    status: Path | None,
    paid: Sequence[int],
    refused: Sequence[int],
    *,
    dry_run: bool,
) -> Heard:
    """Take it to the rail, line by line. Raises StatusReportError, BadParameter, OSError."""
    heard = Heard()
    if status is None and not paid and not refused:
        return heard
    if not isinstance(rail, Pain001Rail):
        raise typer.BadParameter(f"{payout.rail} knows by itself what it paid")
    said: dict[str, Said] = {}
    if status is not None:
        with status.open("rb") as file:
            report = read_report(file.read(MAX_REPORT_BYTES + 1))
        told = rail.told(report)
        said |= told.said
        heard.others = _others(at, payout, status, report)
        if not told.said and not told.remarks:
            nothing = f"{status} says nothing of a payment of this payout"
            raise StatusReportError("; ".join((nothing, *heard.others)))
        by_operator = {*paid, *refused}
        for line in payout.lines:
            remark = told.remarks.get(payout.key(line))
            if remark is not None and line not in by_operator:  # who looked at the account knows better
                heard.remarks[line] = remark
                heard.exit_code |= remark.wrong
    said |= _by_operator(payout, said, paid, refused)
    for line in payout.lines:
        if payout.key(line) in said:
            _take(at, rail, payout, line, said[payout.key(line)], heard, dry_run=dry_run)
    return heard


def _by_operator(
    payout: Payout, said: dict[str, Said], paid: Sequence[int], refused: Sequence[int]
) -> dict[str, Said]:
    found: dict[str, Said] = {}
    for numbers, outcome in ((paid, Outcome.CONFIRMED), (refused, Outcome.FAILED)):
        for number in numbers:
            if number not in payout.lines:
                raise typer.BadParameter(f"this payout has no line {number}")
            key = payout.key(number)
            known = found.setdefault(key, said.get(key, Said(outcome, "operator")))
            if known.outcome is not outcome:
                raise typer.BadParameter(f"line {number} is given two outcomes")
    return found


def _take(
    at: Console, rail: Pain001Rail, payout: Payout, line: int, said: Said, heard: Heard, *, dry_run: bool
) -> None:
    key = payout.key(line)
    try:
        news = (rail.judge if dry_run else rail.record)(key, said)
    except BankAnswerError as error:  # the others are taken all the same
        heard.wrong(line, str(error))
        return
    if news is News.RETURNED:
        heard.came_back[line] = said
    elif news is News.OLDER:
        heard.remarks[line] = Remark(
            f"{said.reference} is said of it in a report from before the one that rejected it: nothing follows"
        )
    elif news is News.AGAIN:
        back_micro = returns.returned(at.ledger, payout.id, line)
        if back_micro:
            what = "paid" if said.outcome is Outcome.CONFIRMED else "rejected"
            when = f" by the report of {said.created}" if said.created else ""
            heard.wrong(
                line,
                f"it is said to be {what} ({said.reference}){when}, and {micro_to_text(back_micro)} of it is booked as "
                f"come back: look at the account. Nothing was changed; docs/operators.md, Paying",
                VERIFICATION_FAILED,
            )
    elif news is not News.NOTHING and dry_run:
        heard.told[key] = Answer(said.outcome, said.reference)


def _others(at: Console, payout: Payout, status: Path, report: Report) -> list[str]:
    """A report may speak of other payouts, and of what is not ours."""
    keys = payments_in(payouts_folder(at.settings))
    mine = {end_to_end_id(payout.key(line)) for line in payout.lines}
    others = [name for name in report.payments if name not in mine]
    found = []
    for batch, count in Counter(keys[name].partition(":")[0] for name in others if name in keys).items():
        number = number_of(UUID(batch))
        found.append(
            f"the report says something of {count} payment(s) of payout {number} too: "
            f"streamrp2p payout reconcile {number} --status {status}"
        )
    strange = [name for name in others if name not in keys]
    if strange:
        found.append(
            f"the report says something of {len(strange)} payment(s) that are none of ours: {strange[0]}"
        )
    if report.nameless:
        found.append(f"the report says something of {report.nameless} payment(s) that it does not name")
    return found
