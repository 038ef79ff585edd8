"""Book: every event that moves money, in one sequence.

Invariants, checked on each write and on each replay: a transfer sums to zero and is exactly the movement its event
stands for; no account but `external` is ever negative; an epoch is settled once and released once; a reservation is
confirmed or failed once; no more comes back of a payout line than was paid; a line is disputed once and its dispute
decided once; what a friend ever earned is pending, available, in flight, paid or voided. Two writers of the same
version cannot both win, so none of this is a race.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from ledger import money
from ledger.aggregates.base import Aggregate, DomainError
from ledger.aggregates.disputes import OPENERS, Dispute, adjustable_kind, check_reason, rejected, upheld
from ledger.aggregates.movements import amount_of, earned, friend_move, friend_of, move
from ledger.aggregates.paid import Paid, PaidLines
from ledger.events import (
    AdjustmentBooked,
    BudgetDeposited,
    BudgetWithdrawn,
    DisputeOpened,
    DisputeRejected,
    DisputeUpheld,
    EpochSettled,
    Event,
    HoldsReleased,
    PayoutLineConfirmed,
    PayoutLineFailed,
    PayoutLineReserved,
    PayoutLineReturned,
    SettlementLine,
    TariffSet,
    Transfer,
)
from ledger.settlement import Page, Tariff, tariff_of

MAX_REFERENCE_CHARS: Final = 100
DAY_US: Final = 86_400 * 1_000_000
RELEASES_PER_PAGE: Final = 200  # transfers of about 150 bytes in an event of at most 65,535


@dataclass(slots=True)
class Hold:
    """Earnings of one epoch that wait: friend (the id's text) -> micro-units."""

    settled_us: int
    amounts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reservation:
    friend_id: UUID
    amount_micro: int
    day: int  # UTC, since the epoch of Unix


class Book(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.accounts: dict[str, int] = {}
        self.next_epoch = 0  # the first epoch that is not settled
        self.settled_to = 0  # log positions below this are settled
        self.holds: dict[int, Hold] = {}
        self.reservations: dict[tuple[UUID, int], Reservation] = {}  # (batch, line)
        self.paid = PaidLines()
        self.reserved_on: dict[int, int] = {}  # UTC day -> given to rails on it, without what failed
        self.disputes: dict[int, Dispute] = {}
        # By friend (the id's text): all that was ever credited, and what of it was taken back.
        self.earned: dict[str, int] = {}
        self.voided: dict[str, int] = {}
        self._disputed: set[tuple[int, int]] = set()  # (settled version, line)
        self._tariffs: dict[UUID, list[TariffSet]] = {}
        self._references: dict[str, tuple[object, ...]] = {}  # reference -> what it stands for
        self._page: _NextPage | None = None  # while the pages of an epoch are not complete

    # --- reading

    def balance(self, account: str) -> int:
        return self.accounts.get(account, 0)

    def budget(self, stream_id: UUID) -> int:
        return self.balance(money.budget_account(stream_id))

    def available(self) -> dict[UUID, int]:
        """Friends with money to pay out, ordered by id."""
        found = {}
        for account, amount in self.accounts.items():
            if amount and account.startswith("friend:") and account.endswith(":available"):
                found[UUID(account.split(":")[1])] = amount
        return dict(sorted(found.items()))

    def tariff(self, stream_id: UUID, epoch: int) -> Tariff | None:
        """The newest tariff of the stream that is effective in `epoch`."""
        effective = [t for t in self._tariffs.get(stream_id, ()) if t.effective_epoch <= epoch]
        return tariff_of(effective[-1]) if effective else None

    def tariff_version(self, stream_id: UUID) -> int:
        """The newest version set, effective or not; 0 when there is none."""
        return len(self._tariffs.get(stream_id, ()))

    def newest_tariff(self, stream_id: UUID) -> Tariff | None:
        """The last one set, effective or not."""
        known = self._tariffs.get(stream_id)
        return tariff_of(known[-1]) if known else None

    def knows(self, reference: str) -> bool:
        """Whether a movement of this reference is in the book."""
        return reference in self._references

    def returned_by(self, reference: str) -> int:
        """What came back under this reference, in micro-units."""
        known = self._references.get(reference, ())
        return known[3] if len(known) == 4 and known[0] == "return" and isinstance(known[3], int) else 0

    def paid_out_on(self, at_us: int) -> int:
        """What was given to rails on the UTC day of `at_us` and has not come back."""
        return self.reserved_on.get(at_us // DAY_US, 0)

    def adds_up(self) -> bool:
        """Whether all invariants on amounts hold. Of a book that is no fold of its events, but was kept as it was."""
        if sum(self.accounts.values()) or any(
            amount < 0 for account, amount in self.accounts.items() if account != money.EXTERNAL
        ):
            return False
        pots: dict[str, int] = defaultdict(int)  # friend -> all there is
        waiting: dict[str, int] = defaultdict(int)  # account -> amount, by what must make it up
        for account, amount in self.accounts.items():
            kind, _, rest = account.partition(":")
            friend, _, state = rest.partition(":")
            if kind == "friend":
                pots[friend] += amount
                if state in ("pending", "in_flight", "paid"):
                    waiting[account] += amount
        for hold in self.holds.values():
            for friend, amount in hold.amounts.items():
                waiting[money.friend_account(friend, "pending")] -= amount
        for dispute in self.disputes.values():
            if dispute.state == "open":
                waiting[money.friend_account(dispute.friend_id, "pending")] -= dispute.amount_micro
        for reservation in self.reservations.values():
            waiting[money.friend_account(reservation.friend_id, "in_flight")] -= reservation.amount_micro
        for friend_id, left_micro in self.paid.left().items():
            waiting[money.friend_account(friend_id, "paid")] -= left_micro
        known = {*pots, *self.earned, *self.voided}
        return not any(waiting.values()) and all(
            pots.get(f, 0) + self.voided.get(f, 0) == self.earned.get(f, 0) for f in known
        )

    # --- commands

    def set_tariff(
        self,
        stream_id: UUID,
        *,
        effective_epoch: int,
        rate_micro_per_gb: int,
        fee_bp: int,
        floor_bp: int,
        plain_bp: int,
        plain_income_cap_bp: int,
        at_us: int,
    ) -> None:
        """A price never changes under work that is being done: only a first tariff takes effect at once."""
        self.trigger(
            TariffSet,
            at_us=at_us,
            stream_id=stream_id,
            tariff_version=self.tariff_version(stream_id) + 1,
            effective_epoch=effective_epoch,
            rate_micro_per_gb=rate_micro_per_gb,
            fee_bp=fee_bp,
            floor_bp=floor_bp,
            plain_bp=plain_bp,
            plain_income_cap_bp=plain_income_cap_bp,
        )

    def deposit(self, stream_id: UUID, *, amount_micro: int, reference: str, at_us: int) -> bool:
        """False when this very deposit is in the book already.

        Raises DomainError when the reference stands for another movement.
        """
        if self._known(reference, ("deposit", stream_id, amount_micro)):
            return False
        transfer = move("deposit", money.EXTERNAL, money.budget_account(stream_id), amount_micro)
        self.trigger(
            BudgetDeposited, at_us=at_us, stream_id=stream_id, reference=reference, transfer=transfer
        )
        return True

    def withdraw(self, stream_id: UUID, *, amount_micro: int, reference: str, at_us: int) -> bool:
        """The creator takes unspent budget back. Idempotent by reference, as `deposit`."""
        if self._known(reference, ("withdrawal", stream_id, amount_micro)):
            return False
        if amount_micro > self.budget(stream_id):
            raise DomainError("the budget holds less than that")
        transfer = move("withdrawal", money.budget_account(stream_id), money.EXTERNAL, amount_micro)
        self.trigger(
            BudgetWithdrawn, at_us=at_us, stream_id=stream_id, reference=reference, transfer=transfer
        )
        return True

    def settle_epoch(self, epoch: int, *, log_to: int, pages: Sequence[Page], at_us: int) -> None:
        """Record the settlement of all that is in the log up to `log_to` (exclusive)."""
        log_from = self.settled_to
        self._deltas(t for page in pages for t in page.transfers)  # all pages or none
        for number, page in enumerate(pages, 1):
            self.trigger(
                EpochSettled,
                at_us=at_us,
                epoch=epoch,
                page=number,
                pages=len(pages),
                log_from=log_from,
                log_to=log_to,
                lines=page.lines,
                transfers=page.transfers,
            )

    def release_hold(self, epoch: int, *, at_us: int) -> None:
        """Pending becomes available for all that was earned in `epoch`. Raises DomainError when nothing is held."""
        hold = self.holds.get(epoch)
        if hold is None:
            raise DomainError(f"nothing is held for epoch {epoch}")
        transfers = [
            friend_move("hold_released", friend_id, "pending", "available", amount)
            for friend_id, amount in sorted(hold.amounts.items())
        ]
        chunks = [
            tuple(transfers[i : i + RELEASES_PER_PAGE]) for i in range(0, len(transfers), RELEASES_PER_PAGE)
        ]
        for number, chunk in enumerate(chunks, 1):
            self.trigger(
                HoldsReleased, at_us=at_us, epoch=epoch, page=number, pages=len(chunks), transfers=chunk
            )

    def reserve_payout_line(
        self, batch_id: UUID, line: int, *, friend_id: UUID, amount_micro: int, at_us: int
    ) -> None:
        if amount_micro > self.balance(money.friend_account(friend_id, "available")):
            raise DomainError("less is available than the payout line says")
        transfer = friend_move("payout_reserved", friend_id, "available", "in_flight", amount_micro)
        self.trigger(PayoutLineReserved, at_us=at_us, batch_id=batch_id, line=line, transfer=transfer)

    def confirm_payout_line(self, batch_id: UUID, line: int, *, at_us: int) -> None:
        r = self._reserved(batch_id, line)
        transfer = friend_move("payout_confirmed", r.friend_id, "in_flight", "paid", r.amount_micro)
        self.trigger(PayoutLineConfirmed, at_us=at_us, batch_id=batch_id, line=line, transfer=transfer)

    def fail_payout_line(self, batch_id: UUID, line: int, *, at_us: int) -> None:
        r = self._reserved(batch_id, line)
        transfer = friend_move("payout_failed", r.friend_id, "in_flight", "available", r.amount_micro)
        self.trigger(PayoutLineFailed, at_us=at_us, batch_id=batch_id, line=line, transfer=transfer)

    def return_payout_line(
        self,
        batch_id: UUID,
        line: int,
        *,
        amount_micro: int | None,
        reference: str,
        reason: str,
        at_us: int,
    ) -> bool:
        """What was paid came back, all that is left of it (None) or a part. False when this is in the book already.

        Raises DomainError when the reference stands for another movement, or the line has not so much left.
        """
        known = self._references.get(reference)
        if amount_micro is None and known is not None and known[:3] == ("return", batch_id, line):
            return False
        paid = self._paid(batch_id, line)
        amount = paid.left_micro if amount_micro is None else amount_micro
        if self._known(reference, ("return", batch_id, line, amount)):
            return False
        if not paid.left_micro:
            raise DomainError("all that was paid for this payout line has come back already")
        transfer = friend_move("payout_returned", paid.friend_id, "paid", "available", amount)
        self.trigger(
            PayoutLineReturned,
            at_us=at_us,
            batch_id=batch_id,
            line=line,
            reference=reference,
            reason=reason,
            transfer=transfer,
        )
        return True

    def open_dispute(
        self,
        line: SettlementLine,
        *,
        epoch: int,
        position: int,
        settled_version: int,
        number: int,
        opened_by: str,
        reason: str,
        at_us: int,
    ) -> int:
        """Freeze line `number` of the settlement that is this book's event `settled_version`, at `position` in the log.

        Returns the dispute's number. Raises DomainError when the line was disputed before or is released already.
        """
        self.trigger(
            DisputeOpened,
            at_us=at_us,
            dispute=len(self.disputes) + 1,
            epoch=epoch,
            position=position,
            settled_version=settled_version,
            line=number,
            friend_id=line.friend_id,
            stream_id=line.stream_id,
            amount_micro=line.amount_micro,
            opened_by=opened_by,
            reason=reason,
        )
        return len(self.disputes)

    def uphold_dispute(self, number: int, *, reason: str, at_us: int) -> None:
        """The line is void: its amount goes back to the budget. The platform fee stays."""
        self._decide(DisputeUpheld, number, reason, at_us)

    def reject_dispute(self, number: int, *, reason: str, at_us: int) -> None:
        """The line holds: back into its hold, or available at once when the rest of it is released already."""
        self._decide(DisputeRejected, number, reason, at_us)

    def adjust(
        self,
        *,
        source: str,
        target: str,
        amount_micro: int,
        reference: str,
        reason: str,
        rests_on: tuple[int, ...] = (),
        at_us: int,
    ) -> bool:
        """A correction by hand. False when it is in the book already.

        Raises DomainError when the reference stands for another movement, or there is less than that in `source`.
        """
        if self._known(reference, ("adjustment", source, target, amount_micro)):
            return False
        transfer = move("adjustment", source, target, amount_micro, rests_on)
        self.trigger(AdjustmentBooked, at_us=at_us, reference=reference, reason=reason, transfer=transfer)
        return True

    # --- folding; every check comes before the first change

    def apply(self, event: Event) -> None:
        if self._page is not None and not isinstance(event, EpochSettled | HoldsReleased):
            raise DomainError(f"the pages of epoch {self._page.epoch} are not complete")
        match event:
            case TariffSet():
                self._apply_tariff(event)
            case BudgetDeposited():
                account = money.budget_account(event.stream_id)
                self._apply_budget("deposit", event, money.EXTERNAL, account)
            case BudgetWithdrawn():
                account = money.budget_account(event.stream_id)
                self._apply_budget("withdrawal", event, account, money.EXTERNAL)
            case EpochSettled():
                self._apply_settled(event)
            case HoldsReleased():
                self._apply_released(event)
            case PayoutLineReserved():
                self._apply_reserved(event)
            case PayoutLineConfirmed():
                self._apply_resolved(event, "payout_confirmed", "paid")
            case PayoutLineFailed():
                self._apply_resolved(event, "payout_failed", "available")
            case PayoutLineReturned():
                self._apply_returned(event)
            case DisputeOpened():
                self._apply_opened(event)
            case DisputeUpheld() | DisputeRejected():
                self._apply_decided(event)
            case AdjustmentBooked():
                self._apply_adjusted(event)
            case _:
                raise TypeError(type(event).__name__)

    def _apply_tariff(self, event: TariffSet) -> None:
        known = self._tariffs.get(event.stream_id, [])
        earliest = max(self.next_epoch + 1, known[-1].effective_epoch) if known else self.next_epoch
        if event.tariff_version != len(known) + 1 or event.effective_epoch < earliest:
            raise DomainError(f"the next tariff is version {len(known) + 1}, from epoch {earliest} on")
        parts = (event.fee_bp, event.floor_bp, event.plain_bp, event.plain_income_cap_bp)
        if not 0 <= event.rate_micro_per_gb <= money.MAX_AMOUNT_MICRO or not all(
            0 <= bp <= money.BP for bp in parts
        ):
            raise DomainError("a tariff has a rate of zero or more and parts of 0 to 10,000 basis points")
        self._tariffs.setdefault(event.stream_id, []).append(event)

    def _apply_budget(
        self, kind: str, event: BudgetDeposited | BudgetWithdrawn, source: str, target: str
    ) -> None:
        self._check_reference(event.reference)
        amount = amount_of(event.transfer, kind, source, target)
        if self.budget(event.stream_id) + amount > money.MAX_AMOUNT_MICRO:
            raise DomainError("a budget cannot hold so much")
        self._post([event.transfer])
        self._references[event.reference] = (kind, event.stream_id, amount)

    def _apply_settled(self, event: EpochSettled) -> None:
        self._check_page(event)
        if event.page == 1 and event.epoch < self.next_epoch:
            raise DomainError(f"epoch {event.epoch} is settled already")
        if event.log_from != self.settled_to or event.log_to < event.log_from:
            raise DomainError(
                f"the settlement of epoch {event.epoch} must read the log from {self.settled_to}"
            )
        earned_now = earned(event.lines, event.transfers)
        self._post(event.transfers)
        hold = self.holds.setdefault(event.epoch, Hold(event.at_us))
        for friend_id, amount in earned_now.items():
            hold.amounts[friend_id] = hold.amounts.get(friend_id, 0) + amount
            self.earned[friend_id] = self.earned.get(friend_id, 0) + amount
        if self._turn_page(event):
            if not hold.amounts:
                del self.holds[event.epoch]
            self.next_epoch, self.settled_to = event.epoch + 1, event.log_to

    def _apply_released(self, event: HoldsReleased) -> None:
        self._check_page(event)
        hold = self.holds.get(event.epoch)
        if hold is None:
            raise DomainError(f"nothing is held for epoch {event.epoch}")
        held = sorted(hold.amounts.items())[: len(event.transfers)]
        expected = tuple(friend_move("hold_released", f, "pending", "available", a) for f, a in held)
        last = len(expected) == len(hold.amounts)
        if event.transfers != expected or not expected or last != (event.page == event.pages):
            raise DomainError(f"this is not what is held for epoch {event.epoch}")
        self._post(event.transfers)
        for friend_id, _ in held:
            del hold.amounts[friend_id]
        if self._turn_page(event):
            del self.holds[event.epoch]

    def _apply_reserved(self, event: PayoutLineReserved) -> None:
        key = (event.batch_id, event.line)
        if key in self.reservations:
            raise DomainError("this payout line is reserved already")
        friend_id = friend_of(event.transfer)
        source, target = (money.friend_account(friend_id, s) for s in ("available", "in_flight"))
        amount = amount_of(event.transfer, "payout_reserved", source, target)
        self._post([event.transfer])
        day = event.at_us // DAY_US
        self.reservations[key] = Reservation(friend_id, amount, day)
        self.reserved_on[day] = self.reserved_on.get(day, 0) + amount

    def _apply_resolved(
        self, event: PayoutLineConfirmed | PayoutLineFailed, reason: str, target: str
    ) -> None:
        r = self._reserved(event.batch_id, event.line)
        if event.transfer != friend_move(reason, r.friend_id, "in_flight", target, r.amount_micro):
            raise DomainError("this is not what was reserved for the payout line")
        self._post([event.transfer])
        del self.reservations[event.batch_id, event.line]
        if target == "available":
            self.reserved_on[r.day] -= r.amount_micro
        else:
            self.paid.add(event.batch_id, event.line, r.friend_id, r.amount_micro)

    def _apply_returned(self, event: PayoutLineReturned) -> None:
        """What was given to rails on a day is not less for it: it did leave."""
        self._check_reference(event.reference)
        check_reason(event.reason)
        paid = self._paid(event.batch_id, event.line)
        source, target = (money.friend_account(paid.friend_id, s) for s in ("paid", "available"))
        amount = amount_of(event.transfer, "payout_returned", source, target)
        self.paid.came_back(event.batch_id, event.line, amount)
        self._post([event.transfer])
        self._references[event.reference] = ("return", event.batch_id, event.line, amount)

    def _apply_opened(self, event: DisputeOpened) -> None:
        key, friend = (event.settled_version, event.line), str(event.friend_id)
        hold = self.holds.get(event.epoch)
        if key in self._disputed:
            raise DomainError("this line was disputed before")
        if hold is None or not 0 < event.amount_micro <= hold.amounts.get(friend, 0):
            raise DomainError("only what is still held can be disputed; correct the rest by an adjustment")
        check_reason(event.reason)
        if event.dispute != len(self.disputes) + 1 or event.opened_by not in OPENERS:
            raise DomainError(f"the next dispute is number {len(self.disputes) + 1}")
        hold.amounts[friend] -= event.amount_micro
        if not hold.amounts[friend]:
            del hold.amounts[friend]
        self._disputed.add(key)
        self.disputes[event.dispute] = Dispute(
            number=event.dispute,
            epoch=event.epoch,
            position=event.position,
            settled_version=event.settled_version,
            line=event.line,
            friend_id=event.friend_id,
            stream_id=event.stream_id,
            amount_micro=event.amount_micro,
            opened_by=event.opened_by,
            reason=event.reason,
            opened_us=event.at_us,
        )

    def _apply_decided(self, event: DisputeUpheld | DisputeRejected) -> None:
        dispute = self._open_dispute(event.dispute)
        check_reason(event.reason)
        hold, friend = self.holds.get(dispute.epoch), str(dispute.friend_id)
        void = isinstance(event, DisputeUpheld)
        said = (event.friend_id, event.amount_micro, event.transfers)
        if said != (dispute.friend_id, dispute.amount_micro, self._decision(type(event), dispute)):
            raise DomainError(f"this is not what follows from the decision on dispute {event.dispute}")
        self._post(event.transfers)
        state = "upheld" if void else "rejected"
        self.disputes[event.dispute] = replace(dispute, state=state, decision=event.reason)
        if void:
            self.voided[friend] = self.voided.get(friend, 0) + dispute.amount_micro
        elif hold is not None:
            hold.amounts[friend] = hold.amounts.get(friend, 0) + dispute.amount_micro
        if hold is not None and not hold.amounts and not self._frozen(dispute.epoch):
            del self.holds[dispute.epoch]

    def _apply_adjusted(self, event: AdjustmentBooked) -> None:
        self._check_reference(event.reference)
        check_reason(event.reason)
        source, target = (
            (p.account for p in event.transfer.postings) if len(event.transfer.postings) == 2 else ("", "")
        )
        amount = event.transfer.postings[-1].amount_micro if event.transfer.postings else 0
        kinds = (adjustable_kind(source), adjustable_kind(target))
        if event.transfer != move("adjustment", source, target, amount, event.transfer.rests_on):
            raise DomainError("an adjustment moves one amount from one account to another")
        if "" in kinds or source == target or kinds == ("friend", "friend"):
            raise DomainError("an adjustment is between a budget, the fees and what is available to a friend")
        self._post([event.transfer])
        self._references[event.reference] = ("adjustment", source, target, amount)
        if kinds[1] == "friend":
            friend = target.split(":")[1]
            self.earned[friend] = self.earned.get(friend, 0) + amount
        elif kinds[0] == "friend":
            friend = source.split(":")[1]
            self.voided[friend] = self.voided.get(friend, 0) + amount

    # --- helpers

    def _decide(
        self, kind: type[DisputeUpheld | DisputeRejected], number: int, reason: str, at_us: int
    ) -> None:
        dispute = self._open_dispute(number)
        self.trigger(
            kind,
            at_us=at_us,
            dispute=number,
            friend_id=dispute.friend_id,
            amount_micro=dispute.amount_micro,
            reason=reason,
            transfers=self._decision(kind, dispute),
        )

    def _decision(
        self, kind: type[DisputeUpheld | DisputeRejected], dispute: Dispute
    ) -> tuple[Transfer, ...]:
        if kind is DisputeUpheld:
            return (upheld(dispute),)
        return () if dispute.epoch in self.holds else (rejected(dispute),)

    def _open_dispute(self, number: int) -> Dispute:
        dispute = self.disputes.get(number)
        if dispute is None or dispute.state != "open":
            raise DomainError(f"there is no open dispute {number}")
        return dispute

    def _frozen(self, epoch: int) -> bool:
        return any(d.epoch == epoch and d.state == "open" for d in self.disputes.values())

    def _check_reference(self, reference: str) -> None:
        if not 1 <= len(reference) <= MAX_REFERENCE_CHARS or reference in self._references:
            raise DomainError(f"a reference has 1 to {MAX_REFERENCE_CHARS} characters and is used once")

    def _known(self, reference: str, what: tuple[object, ...]) -> bool:
        known = self._references.get(reference)
        if known is not None and known != what:
            raise DomainError(f"reference {reference!r} stands for another movement already")
        return known is not None

    def _reserved(self, batch_id: UUID, line: int) -> Reservation:
        try:
            return self.reservations[batch_id, line]
        except KeyError:
            raise DomainError("this payout line is not reserved") from None

    def _paid(self, batch_id: UUID, line: int) -> Paid:
        try:
            return self.paid[batch_id, line]
        except KeyError:
            raise DomainError("this payout line was not paid: nothing of it can come back") from None

    def _check_page(self, event: EpochSettled | HoldsReleased) -> None:
        expected = self._page or replace(_next_page(event), page=1)
        if not 1 <= event.page <= event.pages or _next_page(event) != expected:
            raise DomainError(f"page {event.page} of epoch {event.epoch} does not follow")

    def _turn_page(self, event: EpochSettled | HoldsReleased) -> bool:
        """True after the last page."""
        last = event.page == event.pages
        self._page = None if last else replace(_next_page(event), page=event.page + 1)
        return last

    def _deltas(self, transfers: Iterable[Transfer]) -> Mapping[str, int]:
        """The changes to accounts. Raises DomainError when a transfer or a balance after it would be wrong."""
        deltas: dict[str, int] = defaultdict(int)
        for transfer in transfers:
            if sum(p.amount_micro for p in transfer.postings) != 0 or not transfer.postings:
                raise DomainError(f"transfer {transfer.reason!r} does not sum to zero")
            for posting in transfer.postings:
                deltas[posting.account] += posting.amount_micro
        for account, delta in deltas.items():
            if account != money.EXTERNAL and self.balance(account) + delta < 0:
                raise DomainError(f"{account} would be negative")
        return deltas

    def _post(self, transfers: Iterable[Transfer]) -> None:
        for account, delta in self._deltas(transfers).items():
            self.accounts[account] = self.accounts.get(account, 0) + delta


@dataclass(frozen=True, slots=True)
class _NextPage:
    kind: type[Event]
    epoch: int
    page: int
    pages: int
    log_to: int


def _next_page(event: EpochSettled | HoldsReleased) -> _NextPage:
    log_to = event.log_to if isinstance(event, EpochSettled) else 0
    return _NextPage(type(event), event.epoch, event.page, event.pages, log_to)
