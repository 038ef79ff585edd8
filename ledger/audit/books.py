"""The books, kept a second time: a dictionary and a loop, without the Book aggregate.

In memory: a balance for each account, the movements since the last state leaf, the disputes. What is held for an epoch
and the settlements that may still be disputed are in the store.

Invariants, checked after every event: each transfer sums to zero and moves what its event stands for; no account but
`external` is negative; every settlement is the one that credits, tariffs and budgets give; a hold is released once, in
full, and not before its time; what a friend earned is what stands in the friend's accounts.
"""

from typing import Final
from uuid import UUID

import msgspec

from ledger.aggregates.tree import balances_digest
from ledger.audit.crew import RACE_US, Crew, present, require
from ledger.audit.dues import Dues
from ledger.audit.facts import struct_table
from ledger.audit.report import AuditFailure, Counts
from ledger.audit.store import Store, number_key
from ledger.events import (
    AdjustmentBooked,
    BudgetDeposited,
    BudgetWithdrawn,
    DisputeOpened,
    DisputeRejected,
    DisputeUpheld,
    EpochSettled,
    HoldsReleased,
    Posting,
    SettlementLine,
    StateRecorded,
    TariffSet,
    Transfer,
)
from ledger.money import BP, MAX_AMOUNT_MICRO
from ledger.settlement import Page, Tariff, pages, settle

REFERENCE_CHARS: Final = 100
REASON_CHARS: Final = 100


class _Held(msgspec.Struct, array_like=True):
    """What an epoch holds back, and the settlements that say so."""

    friends: dict[UUID, int] = {}  # friend -> micro-units
    settled_us: int = 0
    versions: list[int] = []  # of the book, of pages that may be disputed
    open: bool = False  # not released yet


class _Page(msgspec.Struct, array_like=True):
    epoch: int
    position: int
    lines: tuple[SettlementLine, ...]


class State(msgspec.Struct):
    balances: dict[str, int] = {}
    journal: list[tuple[int, str, int]] = []  # movements since the last state leaf
    covered: int = -1  # position that the last state leaf covers
    tariffs: dict[UUID, list[TariffSet]] = {}
    expected: list[Page] = []  # pages of the settlement in hand that are still to come
    settling: tuple[int, int, int, int] = (0, 0, 0, 0)  # its epoch, its part of the log, and when
    disputes: dict[int, DisputeOpened] = {}  # the open ones
    disputed: set[tuple[int, int]] = set()
    voided: dict[UUID, int] = {}
    earned: dict[UUID, int] = {}
    releasing: tuple[int, int, int] | None = None  # epoch, page and pages of a release that is not complete
    next_epoch: int = 0
    settled_to: int = 0


class Books:
    def __init__(
        self, crew: Crew, dues: Dues, store: Store, counts: Counts, state: State | None = None
    ) -> None:
        self.state = state or State()
        self.balances = self.state.balances
        self._crew = crew
        self._dues = dues
        self._counts = counts
        self._digest: tuple[int, bytes] | None = None  # of the balances now; None when they moved
        self._references = store.table(b"R", bytes, bytes, 4_096)
        self._held = struct_table(store, b"H", _Held, 128)
        self._pages = struct_table(store, b"P", _Page, 64)  # by version of the book

    def finish(self) -> None:
        require(
            not self.state.expected and self.state.releasing is None,
            "the last settlement or release is incomplete",
        )
        require(sum(self.balances.values()) == 0, "the accounts do not sum to zero")
        for friend_id, earned in self.state.earned.items():
            states = ("pending", "available", "in_flight", "paid")
            there = sum(self.balances.get(f"friend:{friend_id}:{s}", 0) for s in states)
            there += self.state.voided.get(friend_id, 0)
            require(there == earned, f"friend {friend_id} earned {earned} micro-units, but has {there}")

    def overdue_micro(self, log_us: int) -> int:
        """Held still, though by then the hold was over."""
        held = [held for _, held in self._held.items() if held.open]
        over_us = log_us - self._crew.settings.now.hold_s * 1_000_000
        return sum(sum(one.friends.values()) for one in held if one.settled_us < over_us)

    @property
    def paid_micro(self) -> int:
        return sum(amount for account, amount in self.balances.items() if account.endswith(":paid"))

    # --- movements

    def post(self, position: int, transfers: tuple[Transfer, ...]) -> None:
        """Book the transfers of one event, then look at every account they touched."""
        touched = set()
        for transfer in transfers:
            require(bool(transfer.postings), f"the transfer {transfer.reason!r} moves nothing")
            total = 0
            for posting in transfer.postings:
                total += posting.amount_micro
                self.balances[posting.account] = self.balances.get(posting.account, 0) + posting.amount_micro
                self.state.journal.append((position, posting.account, posting.amount_micro))
                touched.add(posting.account)
            require(total == 0, f"the transfer {transfer.reason!r} does not sum to zero but to {total}")
            self._counts.transfers += 1
        for account in touched:
            negative = self.balances[account] < 0 and account != "external"
            require(not negative, f"{account} is negative: {self.balances[account]} micro-units")
        if touched:
            self._digest = None

    def move(
        self,
        position: int,
        transfer: Transfer,
        reason: str,
        source: str,
        target: str,
        rests_on: tuple[int, ...] = (),
    ) -> int:
        """Book one transfer that must be exactly `source -> target`. Returns the amount."""
        self.nothing_pending()
        amount = transfer.postings[-1].amount_micro if transfer.postings else 0
        expected = (Posting(source, -amount), Posting(target, amount))
        require(
            amount > 0 and transfer.postings == expected, f"a {reason} must move from {source} to {target}"
        )
        require(transfer.reason == reason, f"the transfer says {transfer.reason!r} and should say {reason!r}")
        require(transfer.rests_on == rests_on, f"a {reason} that does not rest on {list(rests_on)}")
        self.post(position, (transfer,))
        return amount

    def nothing_pending(self) -> None:
        require(not self.state.expected, "pages of a settlement are missing")
        require(self.state.releasing is None, "pages of a release are missing")

    # --- budgets and tariffs

    def deposited(self, position: int, event: BudgetDeposited) -> None:
        self.refer(event.reference)
        self.move(position, event.transfer, "deposit", "external", f"budget:{event.stream_id}")

    def withdrawn(self, position: int, event: BudgetWithdrawn) -> None:
        self.refer(event.reference)
        self.move(position, event.transfer, "withdrawal", f"budget:{event.stream_id}", "external")

    def refer(self, reference: str) -> None:
        key = reference.encode()
        require(1 <= len(reference) <= REFERENCE_CHARS, "a reference has 1 to 100 characters")
        require(key not in self._references, f"the reference {reference!r} was used before")
        self._references.put(key, b"")

    def tariff_set(self, event: TariffSet) -> None:
        self.nothing_pending()
        known = self.state.tariffs.setdefault(event.stream_id, [])
        require(event.tariff_version == len(known) + 1, f"tariff version {len(known) + 1} should be next")
        require(
            event.effective_epoch >= self.state.next_epoch, "a tariff for an epoch that is settled already"
        )
        parts = (event.fee_bp, event.floor_bp, event.plain_bp, event.plain_income_cap_bp)
        possible = 0 <= event.rate_micro_per_gb <= MAX_AMOUNT_MICRO and all(0 <= bp <= BP for bp in parts)
        require(possible, "a tariff has a rate of zero or more and parts of 0 to 10,000 basis points")
        if known:
            require(
                event.effective_epoch > self._crew.epoch_of(event.at_us)
                and event.effective_epoch >= known[-1].effective_epoch,
                "a tariff changes the price of work that is being done",
            )
            done = self._dues.delivered_in(event.stream_id, event.effective_epoch)
            require(not done, "a tariff changes the price of work that stands in the log before it")
        known.append(event)

    def _tariff(self, stream_id: UUID, epoch: int) -> Tariff | None:
        for t in reversed(self.state.tariffs.get(stream_id, [])):
            if t.effective_epoch <= epoch:
                return Tariff(
                    version=t.tariff_version,
                    rate_micro_per_gb=t.rate_micro_per_gb,
                    fee_bp=t.fee_bp,
                    floor_bp=t.floor_bp,
                    plain_bp=t.plain_bp,
                    plain_income_cap_bp=t.plain_income_cap_bp,
                )
        return None

    # --- settlements and holds

    def settled(self, position: int, event: EpochSettled) -> None:
        require(self.state.releasing is None, "pages of a release are missing")
        if event.page == 1:
            require(not self.state.expected, "pages of a settlement are missing")
            self._begin(position, event)
        require(bool(self.state.expected), f"page {event.page} of epoch {event.epoch} was not to come")
        expected = self.state.expected.pop(0)
        require(
            event.page == event.pages - len(self.state.expected),
            f"page {event.page} of {event.pages} does not follow",
        )
        _same_lines(event.lines, expected.lines)
        require(event.transfers == expected.transfers, "the transfers are not those that the lines give")
        said = (event.epoch, event.log_from, event.log_to, event.at_us)
        require(said == self.state.settling, "the page is of another settlement")
        self.post(position, event.transfers)
        held = self._held_for(event.epoch) or _Held()
        held.versions.append(event.originator_version)
        page = _Page(event.epoch, position, event.lines)
        self._pages.put(number_key(event.originator_version), page)
        for line in event.lines:
            if line.amount_micro:
                _add(held.friends, line.friend_id, line.amount_micro)
                _add(self.state.earned, line.friend_id, line.amount_micro)
        self._held.put(number_key(event.epoch), held)
        if not self.state.expected:
            held.settled_us, held.open = event.at_us, bool(held.friends)
            if not held.open:
                self._close(event.epoch, held)
            self.state.next_epoch, self.state.settled_to = event.epoch + 1, event.log_to
            self._dues.settled(position, event)
            self._counts.epochs += 1

    def _held_for(self, epoch: int) -> _Held | None:
        return self._held.get(number_key(epoch))

    def _begin(self, position: int, event: EpochSettled) -> None:
        """Settle the epoch from the log, and see that the hub settled what was due."""
        require(event.epoch >= self.state.next_epoch, f"epoch {event.epoch} is settled already")
        require(event.epoch < self._crew.epoch_of(event.at_us), f"epoch {event.epoch} is not over")
        require(event.log_from == self.state.settled_to, f"the log must be read from {self.state.settled_to}")
        require(event.log_from <= event.log_to <= position, "the log range is not before the settlement")
        cut = self._dues.cut(event.epoch, position, event.at_us)
        require(event.log_to <= cut, "the settlement takes in credits of a later epoch")
        # The hub appends a moment after it read. What was there when the log had gone on from it, long before that
        # moment, is not left out. (A machine that slept may append what it judged before together with this.)
        for at, came_us in self._crew.came_before(event.at_us - RACE_US):
            stood = self._dues.stated_before(came_us)
            if event.log_to <= stood < min(at, cut):
                raise AuditFailure(f"the settlement of epoch {event.epoch} leaves out what stands at {stood}")
        due, _ = present(self._dues.due(position, event.at_us), "no epoch is due")
        # With nothing in it, it may be that of another epoch: the hub had not read yet what came just before it.
        its_own = due == event.epoch or not self._dues.any_before(event.log_to)
        require(its_own, f"credits are settled in epoch {event.epoch} that are due in epoch {due}")
        credits = self._dues.credits(event.epoch, event.log_to)
        streams = {c.stream_id for c in credits}
        tariffs = {s: t for s in streams if (t := self._tariff(s, event.epoch)) is not None}
        budgets = {s: self.balances.get(f"budget:{s}", 0) for s in streams}
        late = {(c.stream_id, c.published) for c in credits if c.late}
        late_tariffs = {of: t for of in late if (t := self._tariff(*of)) is not None}
        rules = self._dues.settings(event.log_to)
        entries = settle(
            credits,
            tariffs,
            budgets,
            late_tariffs=late_tariffs if rules.late_by_own_tariff else None,
            floor_most_bp=rules.floor_most_bp,
            to_the_byte=bool(rules.rate_to_the_byte),
        )
        self.state.expected = pages(entries)
        self.state.settling = (event.epoch, event.log_from, event.log_to, event.at_us)
        require(
            event.pages == len(self.state.expected),
            f"the settlement has {len(self.state.expected)} pages by the rules",
        )

    def released(self, position: int, event: HoldsReleased) -> None:
        require(not self.state.expected, "pages of a settlement are missing")
        epoch, page, pages_ = self.state.releasing or (event.epoch, 0, event.pages)
        follows = (event.epoch, event.page, event.pages) == (epoch, page + 1, pages_)
        require(
            follows, f"page {event.page} of {event.pages} of a release of epoch {event.epoch} does not follow"
        )
        held = present(self._held_for(event.epoch), f"nothing is held for epoch {event.epoch}")
        friends = held.friends
        over = any(
            held.settled_us + s.hold_s * 1_000_000 <= event.at_us
            for s in self._crew.settings.in_force(event.at_us, self._crew.log_us(position))
        )
        require(over, f"the hold on epoch {event.epoch} is not over")
        due = sorted(friends)[: len(event.transfers)]
        expected = tuple(
            Transfer(
                "hold_released",
                (Posting(f"friend:{f}:pending", -friends[f]), Posting(f"friend:{f}:available", friends[f])),
            )
            for f in due
        )
        require(
            bool(expected) and event.transfers == expected,
            f"this is not what is held for epoch {event.epoch}",
        )
        self.post(position, event.transfers)
        for f in due:
            del friends[f]
        require((event.page == event.pages) == (not friends), "the release ends before or after what is held")
        self.state.releasing = (event.epoch, event.page, event.pages) if friends else None
        self._held.put(number_key(event.epoch), held)
        if not friends:
            self._close(event.epoch, held)

    def _close(self, epoch: int, held: _Held) -> None:
        """Nothing more can be released or disputed of the epoch."""
        for version in held.versions:
            self._pages.remove(number_key(version))
        held.open, held.versions = False, []
        self._held.put(number_key(epoch), held)

    # --- disputes and adjustments

    def dispute_opened(self, event: DisputeOpened) -> None:
        self.nothing_pending()
        key = (event.settled_version, event.line)
        require(key not in self.state.disputed, "the line was disputed before")
        require(event.dispute == len(self.state.disputed) + 1, "the dispute is not the next one")
        page = present(
            self._pages.get(number_key(event.settled_version)), "no line that is still held is at that place"
        )
        require(
            (event.epoch, event.position) == (page.epoch, page.position),
            "the dispute names another settlement",
        )
        require(0 <= event.line < len(page.lines), "the settlement has no such line")
        line, held = page.lines[event.line], self._held_for(page.epoch)
        assert held is not None
        said = (event.friend_id, event.stream_id, event.amount_micro)
        require(
            said == (line.friend_id, line.stream_id, line.amount_micro), "the dispute is not of that line"
        )
        require(line.amount_micro > 0, "the line has no amount to freeze")
        require(event.opened_by in ("operator", "friend", "creator"), "nobody may open a dispute so")
        _check_reason(event.reason)
        held.friends[line.friend_id] -= line.amount_micro
        if not held.friends[line.friend_id]:
            del held.friends[line.friend_id]
        self._held.put(number_key(page.epoch), held)
        self.state.disputed.add(key)
        self.state.disputes[event.dispute] = event

    def dispute_decided(self, position: int, event: DisputeUpheld | DisputeRejected) -> None:
        self.nothing_pending()
        dispute = present(
            self.state.disputes.pop(event.dispute, None), f"dispute {event.dispute} is not open"
        )
        _check_reason(event.reason)
        said = (event.friend_id, event.amount_micro)
        require(said == (dispute.friend_id, dispute.amount_micro), "the decision is on another amount")
        epoch = self._held_for(dispute.epoch)
        assert epoch is not None
        upheld, held = isinstance(event, DisputeUpheld), epoch.open
        friend, budget = f"friend:{dispute.friend_id}", f"budget:{dispute.stream_id}"
        reason, target = ("dispute_upheld", budget) if upheld else ("dispute_rejected", f"{friend}:available")
        require(len(event.transfers) == int(upheld or not held), "the decision moves too much or too little")
        for transfer in event.transfers:
            amount = self.move(position, transfer, reason, f"{friend}:pending", target, (dispute.position,))
            require(amount == dispute.amount_micro, f"{dispute.amount_micro} micro-units were disputed")
        if upheld:
            _add(self.state.voided, dispute.friend_id, dispute.amount_micro)
        elif held:
            _add(epoch.friends, dispute.friend_id, dispute.amount_micro)
        self._held.put(number_key(dispute.epoch), epoch)
        others = any(d.epoch == dispute.epoch for d in self.state.disputes.values())
        if held and not epoch.friends and not others:
            self._close(dispute.epoch, epoch)

    def adjusted(self, position: int, event: AdjustmentBooked) -> None:
        self.refer(event.reference)
        require(len(event.transfer.postings) == 2, "an adjustment has one source and one target")
        _check_reason(event.reason)
        source, target = (p.account for p in event.transfer.postings)
        rests_on = event.transfer.rests_on
        amount = self.move(position, event.transfer, "adjustment", source, target, rests_on)
        require(source != target, "an adjustment moves nothing")
        require(all(0 <= at < position for at in rests_on), "it rests on what is not there yet")
        friends = [_adjusted_friend(account) for account in (source, target)]
        require(None in friends, "an adjustment moves money from friend to friend")
        if friends[0] is not None:
            _add(self.state.voided, friends[0], amount)
            _add(self.state.earned, friends[0], 0)
        if friends[1] is not None:
            _add(self.state.earned, friends[1], amount)

    # --- state leaves

    def state_recorded(self, position: int, event: StateRecorded) -> None:
        """Other events may have come between the balances it speaks of and the leaf itself: those are undone."""
        self.nothing_pending()
        require(
            self.state.covered < event.position <= position, "the state leaf covers another part of the log"
        )
        since = [(account, amount) for at, account, amount in self.state.journal if at >= event.position]
        if since:
            before = dict(self.balances)
            for account, amount in since:
                before[account] -= amount
            digest = balances_digest(before)
        else:
            if self._digest is None:
                self._digest = balances_digest(self.balances)
            digest = self._digest
        require(
            digest == (event.accounts, event.balances_sha256),
            f"the balances after the first {event.position} events are not those that the state leaf records",
        )
        self.state.journal = [j for j in self.state.journal if j[0] >= event.position]
        self.state.covered = event.position
        self._counts.state_leaves += 1


def _add(amounts: dict[UUID, int], friend_id: UUID, amount: int) -> None:
    amounts[friend_id] = amounts.get(friend_id, 0) + amount


def _adjusted_friend(account: str) -> UUID | None:
    """The friend whose available money it is; None for a budget or the fees. Raises AuditFailure for all else."""
    kind, _, rest = account.partition(":")
    if account == "fees" or (kind == "budget" and str(UUID(rest)) == rest):
        return None
    friend, _, state = rest.partition(":")
    require(
        kind == "friend" and state == "available" and str(UUID(friend)) == friend, f"{account} is adjusted"
    )
    return UUID(friend)


def _check_reason(reason: str) -> None:
    """Nobody takes anything without saying why."""
    plain = reason.isascii() and reason.isprintable()
    require(1 <= len(reason) <= REASON_CHARS and plain, "a reason has 1 to 100 printable characters")


def _same_lines(recorded: tuple[SettlementLine, ...], expected: tuple[SettlementLine, ...]) -> None:
    for line, rule in zip(recorded, expected, strict=False):
        require(
            line == rule,
            f"the line of node {line.node_id} ({line.reason}) gives {line.amount_micro} micro-units for "
            f"{line.credited_bytes} bytes; by the rules node {rule.node_id} ({rule.reason}) has "
            f"{rule.amount_micro} for {rule.credited_bytes}",
        )
    require(
        len(recorded) == len(expected), f"the page has {len(recorded)} lines, by the rules {len(expected)}"
    )
