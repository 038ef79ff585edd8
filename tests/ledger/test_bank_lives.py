"""A bank that pays, refuses, gives back and reports as banks do: late, in any order, twice, in parts, and about a file
that was uploaded a second time. It never lies, so whatever is read and forgotten, nobody is paid twice.

The model is the bank: what it was given, and what became of it. The commands are those of the operator, with the real
files; the ledger may be one from before, and a run may die before it has written its file.
"""

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from log_ledger import LogLedger
from test_bank_reports import reason
from test_pain001 import DEBTOR, IBANS, payments_in
from test_payout import AT, FRIENDS, earn

from hub import bank_report, payout_outcomes
from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.payout import Payout
from ledger.ids import BOOK_ID
from ledger.money import friend_account
from ledger.rails import OtherPayment
from ledger.rails.given import given
from ledger.rails.pain001 import Pain001Rail
from ledger.rails.pain001_file import amount_text, end_to_end_id
from ledger.rails.pain002 import COPIES, StatusReportError
from ledger.rails.returned import Returns
from ledger.services import crew, payouts, returns
from ledger.services.destinations import Destination

T0 = datetime(2026, 3, 1, tzinfo=UTC)
# What a bank may do with a payment, and what it says of it then.
NEXT = {
    "given": ["pending", "debited", "arrived", "rejected"],
    "pending": ["debited", "arrived", "rejected"],
    "debited": ["arrived", "back", "back"],
    "arrived": [],
    "rejected": [],
    "back": [],
}
SAYS = {
    "given": "RCVD",
    "pending": "PDNG",
    "debited": "ACSC",
    "arrived": "ACCC",
    "rejected": "RJCT",
    "back": "RJCT",
}
GONE = ("rejected", "back")  # the money is with the crew, for good


@dataclass
class AtBank:
    friend: UUID
    amount_micro: int
    file: str
    state: str = "given"


class BankLives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.home = tempfile.TemporaryDirectory(
            prefix="streamrp2p-bank-", dir=memory if memory.is_dir() else None
        )
        self.folder = Path(self.home.name) / "payouts"
        self.ledger: Any = LogLedger()
        self.at: Any = SimpleNamespace(
            ledger=self.ledger, settings=SimpleNamespace(data_dir=Path(self.home.name))
        )
        crew.found_crew(self.ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
        self.where = {f: Destination(f"{IBANS[n]};F", bytes(16)) for n, f in enumerate(FRIENDS)}
        self.bank: dict[str, AtBank] = {}  # by end-to-end id
        self.reports: list[bytes] = []
        self.time, self.serial, self.epochs, self.kept = T0, 0, 0, 0
        self.restored = False

    def teardown(self) -> None:
        self.home.cleanup()

    @initialize()
    def begins(self) -> None:
        self.earned()
        self.plans(None)

    @rule()
    def earned(self) -> None:
        if self.epochs < 3:
            earn(self.ledger, self.epochs)
            self.epochs, self.kept = self.epochs + 1, self.ledger.size()

    @rule(friend=st.sampled_from(FRIENDS))
    def moves(self, friend: UUID) -> None:
        self.serial += 1
        self.where[friend] = Destination(self.where[friend].text, self.serial.to_bytes(16))

    @rule(leave_out=st.sampled_from([None, None, *FRIENDS]))
    def plans(self, leave_out: UUID | None) -> None:
        self.recover()
        with suppress(DomainError):
            payouts.plan(
                self.ledger,
                rail="pain.001",
                threshold_micro=1,
                destinations={f: d.commitment for f, d in self.where.items() if f != leave_out},
                quantum_micro=10_000,
                at_us=AT,
                remembered=Returns(self.folder).all(),
            )
        self.runs(dies=False)

    @rule(dies=st.booleans())
    def runs(self, dies: bool) -> None:
        for payout in payouts.batches(self.ledger):
            if payout.open:
                payouts.approve(self.ledger, payout.id, operator="op", at_us=AT)
                with suppress(payouts.LostPayments, OtherPayment):
                    payouts.run(
                        self.ledger, self.rail(payout.id), payout.id, destinations=self.where, at_us=AT,
                        given=given(self.folder),
                    )  # fmt: skip
                    if not dies:
                        self.rail(payout.id).seal()
        self.uploads()

    def rail(self, batch_id: UUID) -> Pain001Rail:
        return Pain001Rail(self.folder, str(batch_id), debtor=DEBTOR, created_us=AT)

    def uploads(self) -> None:
        by_iban = dict(zip(IBANS, FRIENDS, strict=True))
        for path in sorted(self.folder.glob("*.xml")):
            for name, (iban, amount) in payments_in(path).items():
                known = self.bank.setdefault(name, AtBank(by_iban[iban], int(amount * 10**6), path.name))
                assert known.file == path.name  # a payment is in one file, once

    # --- the bank

    @precondition(lambda self: bool(self.bank))
    @rule(data=st.data())
    def does(self, data: st.DataObject) -> None:
        payment = self.bank[data.draw(st.sampled_from(sorted(self.bank)))]
        if NEXT[payment.state]:
            payment.state = data.draw(st.sampled_from(NEXT[payment.state]))

    @precondition(lambda self: bool(self.bank))
    @rule(data=st.data())
    def reports_now(self, data: st.DataObject) -> None:
        """On some payments of any payouts, with or without their amounts."""
        self.time += timedelta(hours=data.draw(st.sampled_from([1, 24])))
        names = data.draw(st.lists(st.sampled_from(sorted(self.bank)), min_size=1, max_size=4, unique=True))
        lines = ""
        for name in names:
            payment = self.bank[name]
            amount = f'<InstdAmt Ccy="EUR">{amount_text(payment.amount_micro)}</InstdAmt>'
            shown = amount if data.draw(st.booleans()) else ""
            lines += (
                f"<TxInfAndSts><OrgnlEndToEndId>{name}</OrgnlEndToEndId><TxSts>{SAYS[payment.state]}</TxSts>{shown}"
                "</TxInfAndSts>"
            )
        self.keep(lines)

    @precondition(lambda self: bool(self.bank))
    @rule(data=st.data(), code=st.sampled_from(sorted(COPIES)), by_line=st.booleans())
    def refuses_a_copy(self, data: st.DataObject, code: str, by_line: bool) -> None:
        """The operator uploaded a file again."""
        self.time += timedelta(hours=1)
        file = data.draw(st.sampled_from(sorted({p.file for p in self.bank.values()})))
        batch, _, number = file.removesuffix(".xml").rpartition("-")
        message = f"{batch.replace('-', '')[:28]}-{number}"
        lines = "".join(
            f"<TxInfAndSts><OrgnlEndToEndId>{name}</OrgnlEndToEndId><TxSts>RJCT</TxSts></TxInfAndSts>"
            for name, payment in self.bank.items()
            if by_line and payment.file == file
        )
        self.keep(
            f"<OrgnlGrpInfAndSts><OrgnlMsgId>{message}</OrgnlMsgId><GrpSts>RJCT</GrpSts>{reason(code)}"
            f"</OrgnlGrpInfAndSts><OrgnlPmtInfAndSts>{lines}</OrgnlPmtInfAndSts>"
        )

    def keep(self, body: str) -> None:
        head = f"<GrpHdr><CreDtTm>{self.time.isoformat()}</CreDtTm></GrpHdr>"
        self.reports.append(f"<Document>{head}{body}</Document>".encode())

    # --- the operator

    @precondition(lambda self: bool(self.reports))
    @rule(data=st.data())
    def reads(self, data: st.DataObject) -> None:
        """Any of them, for all payouts, mostly a new one; after a dry run."""
        newest = len(self.reports) - 1
        at = data.draw(st.one_of(st.just(newest), st.integers(0, newest)))
        path = Path(self.home.name) / "report.xml"
        path.write_bytes(self.reports[at])
        for payout in payouts.batches(self.ledger):
            size, files = self.ledger.size(), self.files()
            dry = self.reconcile(payout, path, dry_run=True)
            assert (self.ledger.size(), self.files()) == (size, files)
            assert self.reconcile(payout, path, dry_run=False) == dry

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.glob("*")}

    def reconcile(self, payout: Payout, path: Path, *, dry_run: bool) -> Any:
        """As `streamrp2p payout reconcile --status` does it."""
        rail = self.rail(payout.id)
        try:
            heard = bank_report.hear(self.at, rail, payout, path, [], [], dry_run=dry_run)
        except StatusReportError:
            return None
        assert not heard.exit_code  # a bank that does not lie contradicts nothing that is known
        results = payouts.reconcile(self.ledger, rail, payout.id, at_us=AT, told=heard.told, dry_run=dry_run)
        assert payouts.OVERPAID not in {r.state for r in results}
        # What a bank has refused or given back, it does not pay after all, whatever is read of before.
        assert not [r for r in results if (r.was, r.state) == ("failed", "confirmed")]
        booked = payout_outcomes._book_returns(
            self.at, payout, rail, Returns(self.folder), results, heard.came_back, dry_run=dry_run
        )
        return results, booked, heard.remarks

    def recover(self) -> None:
        for payout in payouts.batches(self.ledger):
            returns.book_forgotten(self.ledger, payout.id, Returns(self.folder).all(), at_us=AT)

    @precondition(lambda self: bool(self.bank))
    @rule(data=st.data())
    def forgets(self, data: st.DataObject) -> None:
        old = [n for n in self.ledger.saved if n >= self.kept]
        if old:
            self.restored = True
            self.ledger.cut(data.draw(st.sampled_from(old)))

    # --- after each step

    @invariant()
    def nobody_is_paid_what_they_did_not_earn(self) -> None:
        book = self.ledger.load_or_new(Book, BOOK_ID)
        for friend in FRIENDS:
            earned = book.earned.get(str(friend), 0)
            out = sum(
                p.amount_micro for p in self.bank.values() if p.friend == friend and p.state not in GONE
            )
            assert out <= earned
            if not self.restored:  # what may be paid again has not left, or is back
                assert out + book.balance(friend_account(friend, "available")) <= earned

    @invariant()
    def what_the_books_have_as_failed_was_not_paid(self) -> None:
        for payout in payouts.batches(self.ledger):
            for number, line in payout.lines.items():
                known = self.bank.get(end_to_end_id(payout.key(number)))
                if known is not None and line.attempt and line.state.value == "failed":
                    assert known.state in GONE
                if line.state.value == "confirmed":
                    assert known is not None
                    assert known.state in ("debited", "arrived", "back")


TestBankLives = BankLives.TestCase
TestBankLives.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
