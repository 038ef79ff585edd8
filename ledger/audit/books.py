"""The books, kept a second time: a dictionary and a loop, without the Book aggregate.

Invariants, checked after every event: each transfer sums to zero and moves what its event stands for; no account but
`external` is negative; every settlement is the one that credits, tariffs and budgets give; a hold is released once, in
full, and not before its time; what a friend earned is what stands in the friend's accounts.
"""

from collections import defaultdict
from uuid import UUID

from ledger.aggregates.tree import balances_digest
from ledger.audit.crew import Crew, present, require
from ledger.audit.report import Counts
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
from ledger.services.credit_index import CreditIndex
from ledger.settlement import Page, Tariff, pages, settle


class Books:
    def __init__(self, crew: Crew, index: CreditIndex, counts: Counts) -> None:
        self.balances: dict[str, int] = {}
        self._crew = crew
        self._index = index
        self._counts = counts
        self._journal: list[tuple[int, str, int]] = []  # movements since the last state leaf
        self._covered = -1  # position that the last state leaf covers
        self._digest: tuple[int, bytes] | None = None  # of the balances now; None when they moved
        self._tariffs: dict[UUID, list[TariffSet]] = defaultdict(list)
        self._references: set[str] = set()
        self._expected: list[Page] = []  # pages of the settlement in hand that are still to come
        self._held: dict[int, dict[UUID, int]] = {}  # epoch -> friend -> micro-units
        self._settled_us: dict[int, int] = {}
        self._open: set[int] = set()  # epochs whose hold is not released yet
        self._pages: dict[
            int, tuple[int, int, tuple[SettlementLine, ...]]
        ] = {}  # version -> epoch, position, lines
        self._disputes: dict[int, DisputeOpened] = {}  # the open ones
        self._disputed: set[tuple[int, int]] = set()
        self._voided: dict[UUID, int] = defaultdict(int)
        self._releasing: int | None = None  # epoch whose pages of releases are not complete
        self._earned: dict[UUID, int] = defaultdict(int)
        self._next_epoch = 0
        self._settled_to = 0

    def finish(self) -> None:
        require(
            not self._expected and self._releasing is None, "the last settlement or release is incomplete"
        )
        require(sum(self.balances.values()) == 0, "the accounts do not sum to zero")
        for friend_id, earned in self._earned.items():
            states = ("pending", "available", "in_flight", "paid")
            there = sum(self.balances.get(f"friend:{friend_id}:{s}", 0) for s in states)
            there += self._voided[friend_id]
            require(there == earned, f"friend {friend_id} earned {earned} micro-units, but has {there}")

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
                self._journal.append((position, posting.account, posting.amount_micro))
                touched.add(posting.account)
            require(total == 0, f"the transfer {transfer.reason!r} does not sum to zero but to {total}")
            self._counts.transfers += 1
        for account in touched:
            negative = self.balances[account] < 0 and account != "external"
            require(not negative, f"{account} is negative: {self.balances[account]} micro-units")
        if touched:
            self._digest = None

    def move(self, position: int, transfer: Transfer, reason: str, source: str, target: str) -> int:
        """Book one transfer that must be exactly `source -> target`. Returns the amount."""
        self.nothing_pending()
        amount = transfer.postings[-1].amount_micro if transfer.postings else 0
        expected = (Posting(source, -amount), Posting(target, amount))
        require(
            amount > 0 and transfer.postings == expected, f"a {reason} must move from {source} to {target}"
        )
        require(transfer.reason == reason, f"the transfer says {transfer.reason!r} and should say {reason!r}")
        self.post(position, (transfer,))
        return amount

    def nothing_pending(self) -> None:
        require(not self._expected, "pages of a settlement are missing")
        require(self._releasing is None, "pages of a release are missing")

    # --- budgets and tariffs

    def deposited(self, position: int, event: BudgetDeposited) -> None:
        self._refer(event.reference)
        self.move(position, event.transfer, "deposit", "external", f"budget:{event.stream_id}")

    def withdrawn(self, position: int, event: BudgetWithdrawn) -> None:
        self._refer(event.reference)
        self.move(position, event.transfer, "withdrawal", f"budget:{event.stream_id}", "external")

    def _refer(self, reference: str) -> None:
        require(reference not in self._references, f"the reference {reference!r} was used before")
        self._references.add(reference)

    def tariff_set(self, event: TariffSet) -> None:
        self.nothing_pending()
        known = self._tariffs[event.stream_id]
        require(event.tariff_version == len(known) + 1, f"tariff version {len(known) + 1} should be next")
        require(event.effective_epoch >= self._next_epoch, "a tariff for an epoch that is settled already")
        if known:
            require(
                event.effective_epoch > self._crew.epoch_of(event.at_us)
                and event.effective_epoch >= known[-1].effective_epoch,
                "a tariff changes the price of work that is being done",
            )
        known.append(event)

    def _tariff(self, stream_id: UUID, epoch: int) -> Tariff | None:
        for t in reversed(self._tariffs.get(stream_id, [])):
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
        require(self._releasing is None, "pages of a release are missing")
        if event.page == 1:
            require(not self._expected, "pages of a settlement are missing")
            self._begin(position, event)
        require(bool(self._expected), f"page {event.page} of epoch {event.epoch} was not to come")
        expected = self._expected.pop(0)
        require(
            event.page == event.pages - len(self._expected),
            f"page {event.page} of {event.pages} does not follow",
        )
        _same_lines(event.lines, expected.lines)
        require(event.transfers == expected.transfers, "the transfers are not those that the lines give")
        self.post(position, event.transfers)
        held = self._held.setdefault(event.epoch, {})
        self._pages[event.originator_version] = (event.epoch, position, event.lines)
        for line in event.lines:
            if line.amount_micro:
                held[line.friend_id] = held.get(line.friend_id, 0) + line.amount_micro
                self._earned[line.friend_id] += line.amount_micro
        if not self._expected:
            self._settled_us[event.epoch] = event.at_us
            if held:
                self._open.add(event.epoch)
            else:
                self._close(event.epoch)
            self._next_epoch, self._settled_to = event.epoch + 1, event.log_to
            self._counts.epochs += 1

    def _begin(self, position: int, event: EpochSettled) -> None:
        """Settle the epoch from the log, and see that the hub settled what was due."""
        require(event.epoch >= self._next_epoch, f"epoch {event.epoch} is settled already")
        require(event.epoch < self._crew.epoch_of(event.at_us), f"epoch {event.epoch} is not over")
        require(event.log_from == self._settled_to, f"the log must be read from {self._settled_to}")
        require(event.log_from <= event.log_to <= position, "the log range is not before the settlement")
        due = self._index.due(event.at_us)
        cut = due is not None and (due[0] != event.epoch or event.log_to <= due[1])
        require(cut, "the settlement takes in credits of a later epoch")
        credits = self._index.credits(event.epoch, event.log_to)
        streams = {c.stream_id for c in credits}
        tariffs = {s: t for s in streams if (t := self._tariff(s, event.epoch)) is not None}
        budgets = {s: self.balances.get(f"budget:{s}", 0) for s in streams}
        self._expected = pages(settle(credits, tariffs, budgets))
        require(
            event.pages == len(self._expected), f"the settlement has {len(self._expected)} pages by the rules"
        )

    def released(self, position: int, event: HoldsReleased) -> None:
        require(not self._expected, "pages of a settlement are missing")
        require(self._releasing in (None, event.epoch), "pages of a release are missing")
        held = present(self._held.get(event.epoch), f"nothing is held for epoch {event.epoch}")
        settled_us = self._settled_us[event.epoch]
        over = any(
            settled_us + s.hold_s * 1_000_000 <= event.at_us
            for s in self._crew.settings.in_force(event.at_us)
        )
        require(over, f"the hold on epoch {event.epoch} is not over")
        due = sorted(held)[: len(event.transfers)]
        expected = tuple(
            Transfer(
                "hold_released",
                (Posting(f"friend:{f}:pending", -held[f]), Posting(f"friend:{f}:available", held[f])),
            )
            for f in due
        )
        require(
            bool(expected) and event.transfers == expected,
            f"this is not what is held for epoch {event.epoch}",
        )
        self.post(position, event.transfers)
        for f in due:
            del held[f]
        require((event.page == event.pages) == (not held), "the release ends before or after what is held")
        self._releasing = event.epoch if held else None
        if not held:
            self._close(event.epoch)

    def _close(self, epoch: int) -> None:
        """Nothing more can be released or disputed of the epoch."""
        self._open.discard(epoch)
        self._pages = {v: page for v, page in self._pages.items() if page[0] != epoch}

    # --- disputes and adjustments

    def dispute_opened(self, event: DisputeOpened) -> None:
        self.nothing_pending()
        key = (event.settled_version, event.line)
        require(key not in self._disputed, "the line was disputed before")
        require(event.dispute == len(self._disputed) + 1, "the dispute is not the next one")
        epoch, position, lines = present(
            self._pages.get(event.settled_version), "no line that is still held is at that place"
        )
        require((event.epoch, event.position) == (epoch, position), "the dispute names another settlement")
        require(0 <= event.line < len(lines), "the settlement has no such line")
        line, held = lines[event.line], self._held[epoch]
        said = (event.friend_id, event.stream_id, event.amount_micro)
        require(
            said == (line.friend_id, line.stream_id, line.amount_micro), "the dispute is not of that line"
        )
        require(line.amount_micro > 0, "the line has no amount to freeze")
        require(event.opened_by in ("operator", "friend", "creator"), "nobody may open a dispute so")
        held[line.friend_id] -= line.amount_micro
        if not held[line.friend_id]:
            del held[line.friend_id]
        self._disputed.add(key)
        self._disputes[event.dispute] = event

    def dispute_decided(self, position: int, event: DisputeUpheld | DisputeRejected) -> None:
        self.nothing_pending()
        dispute = present(self._disputes.pop(event.dispute, None), f"dispute {event.dispute} is not open")
        said = (event.friend_id, event.amount_micro)
        require(said == (dispute.friend_id, dispute.amount_micro), "the decision is on another amount")
        upheld, held = isinstance(event, DisputeUpheld), dispute.epoch in self._open
        friend, budget = f"friend:{dispute.friend_id}", f"budget:{dispute.stream_id}"
        reason, target = ("dispute_upheld", budget) if upheld else ("dispute_rejected", f"{friend}:available")
        require(len(event.transfers) == int(upheld or not held), "the decision moves too much or too little")
        for transfer in event.transfers:
            amount = self.move(position, transfer, reason, f"{friend}:pending", target)
            require(amount == dispute.amount_micro, f"{dispute.amount_micro} micro-units were disputed")
            require(transfer.rests_on == (dispute.position,), "the decision rests on another settlement")
        amounts = self._held[dispute.epoch]
        if upheld:
            self._voided[dispute.friend_id] += dispute.amount_micro
        elif held:
            amounts[dispute.friend_id] = amounts.get(dispute.friend_id, 0) + dispute.amount_micro
        if held and not amounts and all(d.epoch != dispute.epoch for d in self._disputes.values()):
            self._close(dispute.epoch)

    def adjusted(self, position: int, event: AdjustmentBooked) -> None:
        self._refer(event.reference)
        require(len(event.transfer.postings) == 2, "an adjustment has one source and one target")
        source, target = (p.account for p in event.transfer.postings)
        amount = self.move(position, event.transfer, "adjustment", source, target)
        require(source != target, "an adjustment moves nothing")
        require(
            all(0 <= at < position for at in event.transfer.rests_on), "it rests on what is not there yet"
        )
        friends = [_adjusted_friend(account) for account in (source, target)]
        require(None in friends, "an adjustment moves money from friend to friend")
        if friends[0] is not None:
            self._voided[friends[0]] += amount
            self._earned[friends[0]] += 0
        if friends[1] is not None:
            self._earned[friends[1]] += amount

    # --- state leaves

    def state_recorded(self, position: int, event: StateRecorded) -> None:
        """Other events may have come between the balances it speaks of and the leaf itself: those are undone."""
        require(self._covered < event.position <= position, "the state leaf covers another part of the log")
        since = [(account, amount) for at, account, amount in self._journal if at >= event.position]
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
        self._journal = [j for j in self._journal if j[0] >= event.position]
        self._covered = event.position
        self._counts.state_leaves += 1


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
