"""Why this amount? The whole derivation of a statement line, from the log alone.

Invariant: an explanation is made by the code that settles, on nothing but the log before the line, and is given only
when it comes to the recorded amount; otherwise ExplanationFailed says what differs. Integers only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol
from uuid import UUID

from ledger import money
from ledger.events import (
    AdjustmentBooked,
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
    transfers_of,
)
from ledger.services.credit_index import CreditIndex, Source
from ledger.settlement import (
    FLOOR_SHARE,
    NO_TARIFF,
    Credit,
    Derivation,
    Share,
    Tariff,
    derive_each,
    is_settled,
    tariff_of,
)

PAGE_EVENTS: Final = 2_000

PAYOUT_MOVES: Final = (PayoutLineReserved, PayoutLineConfirmed, PayoutLineFailed, PayoutLineReturned)
DISPUTE_EVENTS: Final = (DisputeOpened, DisputeUpheld, DisputeRejected)


class NothingToExplain(Exception):
    """There is no statement line at this place."""

    exit_code = 4


class ExplanationFailed(Exception):
    """The log before the line does not lead to the amount that it records."""

    exit_code = 5


class Events(Protocol):
    """A log to read: the hub's own, or a published one."""

    def events(self, start: int, end: int | None) -> Iterator[tuple[int, Event]]:
        """(position, event) of positions from `start` up to `end` (exclusive; None: all there are)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TariffUsed:
    """Basis points and micro-units per 10^9 bytes, as in ledger.events.TariffSet. Version 0: there was none."""

    version: int
    position: int | None
    rate_micro_per_gb: int
    fee_bp: int
    floor_bp: int
    plain_bp: int
    plain_income_cap_bp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The arithmetic of a settlement line, in its order. Amounts in micro-units; see ledger.settlement."""

    stream_weight: int  # of all nodes, bytes x basis points of a full byte
    priced_micro: int  # stream_weight x rate
    budget_micro: int  # what the stream had
    gross_micro: int  # the smaller of both
    scaled_to_budget: bool
    fee_bp_of_gross_micro: int
    pool_micro: int  # gross - fee
    floor_pool_micro: int  # shared equally among the nodes that served
    nodes: int
    rest_micro: int  # shared by weight
    weight: int  # of this line; 0 for a floor share
    quota_micro: int  # the line's share rounded down
    # 1 when the line's remainder was among the largest, ties by node; of a floor share also what its bound took from it
    # (negative), or what the bounds of others left for it
    remainder_micro: int
    uncapped_micro: int  # quota + remainder
    plain_most_micro: int | None  # the most that the node's plain lines may bring together; None: no bound
    amount_micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Earned:
    """Why a settlement line has its amount."""

    position: int
    line: int
    epoch: int
    log_from: int  # the credits in positions [log_from, log_to) were settled, and what had waited
    log_to: int
    stream_id: UUID
    node_id: UUID
    friend_id: UUID
    reason: str
    units: int
    credited_bytes: int
    tariff: TariffUsed
    steps: Steps
    amount_micro: int
    receipts: tuple[Source, ...] | None  # empty for a floor share; None: not looked for
    # Of a line for plain players: what was left out, because the player turned out to be a spot check of the hub's.
    spot_checks: tuple[Source, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    position: int
    line: int
    reason: str
    amount_micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Why a movement between a friend's accounts has its amount: the lines it moves."""

    position: int
    line: int
    friend_id: UUID
    reason: str
    epoch: int | None
    batch_id: UUID | None
    payout_line: int | None
    amount_micro: int
    parts: tuple[
        Part, ...
    ]  # of a released hold, they add up to the amount; of a return, what was paid and came back
    note: str = ""  # what was said when somebody decided it


Explanation = Earned | Moved


def explain(log: Events, position: int, line: int = 0) -> Explanation:
    """Raises NothingToExplain, ExplanationFailed; reads the log from its beginning up to the line."""
    event = next((e for _, e in log.events(position, position + 1)), None)
    if isinstance(event, EpochSettled):
        if not 0 <= line < len(event.lines):
            raise NothingToExplain(f"position {position} has {len(event.lines)} lines, from 0")
        return _explain_earned(log, position, line, event)
    if isinstance(event, HoldsReleased):
        if not 0 <= line < len(event.transfers):
            raise NothingToExplain(f"position {position} has {len(event.transfers)} lines, from 0")
        return _explain_released(log, position, line, event)
    if line == 0:
        if isinstance(event, PayoutLineReturned):
            return _explain_returned(log, position, event)
        if isinstance(event, PAYOUT_MOVES):
            return _moved(position, 0, event.transfer, batch_id=event.batch_id, payout_line=event.line)
        if isinstance(event, DISPUTE_EVENTS):
            return _explain_dispute(log, position, event)
        if isinstance(event, AdjustmentBooked) and _friends(event.transfer):
            return _moved(position, 0, event.transfer, note=event.reason)
    raise NothingToExplain(f"there is no statement line at {position}:{line}")


def statement(log: Events, friend_id: UUID) -> list[Part]:
    """Every line of one friend's statement, oldest first, from the log alone."""
    prefix = f"friend:{friend_id}:"
    found: list[Part] = []
    for position, event in log.events(0, None):
        if isinstance(event, EpochSettled):
            found += [
                Part(position=position, line=n, reason=x.reason, amount_micro=x.amount_micro)
                for n, x in enumerate(event.lines)
                if x.friend_id == friend_id
            ]
            continue
        for n, transfer in enumerate(transfers_of(event)):
            if any(p.account.startswith(prefix) for p in transfer.postings):
                amount = sum(p.amount_micro for p in transfer.postings if p.amount_micro > 0)
                found.append(Part(position=position, line=n, reason=transfer.reason, amount_micro=amount))
    return found


# --- a settlement line


class Means:
    """Tariffs and budgets, folded from the events of the book."""

    def __init__(self) -> None:
        self._tariffs: dict[UUID, list[TariffSet]] = {}
        self._balances: dict[str, int] = {}

    def apply(self, event: Event) -> None:
        if isinstance(event, TariffSet):
            self._tariffs.setdefault(event.stream_id, []).append(event)
        for transfer in transfers_of(event):
            for posting in transfer.postings:
                if posting.account.startswith("budget:"):
                    before = self._balances.get(posting.account, 0)
                    self._balances[posting.account] = before + posting.amount_micro

    def tariff(self, stream_id: UUID, epoch: int) -> tuple[TariffSet | None, Tariff]:
        """The one in force in `epoch`, and the event that set it."""
        for t in reversed(self._tariffs.get(stream_id, [])):
            if t.effective_epoch <= epoch:
                return t, tariff_of(t)
        return None, NO_TARIFF

    def version(self, stream_id: UUID, number: int) -> tuple[TariffSet | None, Tariff]:
        """The one of that number, and the event that set it; without a price where there is none."""
        for t in self._tariffs.get(stream_id, []):
            if t.tariff_version == number:
                return t, tariff_of(t)
        return None, NO_TARIFF

    def budget(self, stream_id: UUID) -> int:
        return self._balances.get(money.budget_account(stream_id), 0)


def _explain_earned(log: Events, position: int, line: int, event: EpochSettled) -> Earned:
    """Fold everything before the settlement's first page, then settle the one stream again."""
    index, means = CreditIndex(each_receipt=True), Means()
    tariffs: dict[int, int] = {}  # version of the book -> position, of its tariffs
    for at, before in log.events(0, position - event.page + 1):
        index.apply(at, before)
        means.apply(before)
        if isinstance(before, TariffSet):
            tariffs[before.originator_version] = at
    recorded = event.lines[line]
    rules = index.settings(event.log_to)
    credits = [
        c
        for c in index.credits(event.epoch, event.log_to)
        if c.stream_id == recorded.stream_id and is_settled(c, to_the_byte=bool(rules.rate_to_the_byte))
    ]

    def tariff_of_published(published: int) -> Tariff:
        late = published < event.epoch and rules.late_by_own_tariff
        return means.tariff(recorded.stream_id, published if late else event.epoch)[1]

    def in_line(published: int) -> bool:
        is_late = published < event.epoch
        return is_late is late and tariff_of_published(published).version == recorded.tariff_version

    late, plain = recorded.reason.endswith("_late"), recorded.reason.startswith("plain")
    setter, _ = means.version(recorded.stream_id, recorded.tariff_version)
    priced = [(c, tariff_of_published(c.published)) for c in credits]
    receipts: list[Source] | None = []
    if recorded.reason != FLOOR_SHARE:
        receipts = index.sources(
            event.epoch,
            event.log_to,
            stream_id=recorded.stream_id,
            node_id=recorded.node_id,
            plain=plain,
            published=in_line,
        )
    left_out = index.spot_checks(
        event.epoch,
        event.log_to,
        stream_id=recorded.stream_id,
        node_id=recorded.node_id,
        published=in_line,
    )
    return explain_line(
        priced,
        event,
        position,
        line,
        budget_micro=means.budget(recorded.stream_id),
        floor_most_bp=rules.floor_most_bp,
        tariff_at=tariffs[setter.originator_version] if setter else None,
        receipts=None if receipts is None else tuple(receipts),
        spot_checks=tuple(left_out) if plain else (),
    )


def explain_line(
    priced: Iterable[tuple[Credit, Tariff]],
    event: EpochSettled,
    position: int,
    line: int,
    *,
    budget_micro: int,
    floor_most_bp: int,
    tariff_at: int | None,
    receipts: tuple[Source, ...] | None,
    spot_checks: tuple[Source, ...] | None,
) -> Earned:
    """The explanation of one recorded line by all credits of its stream. Raises ExplanationFailed.

    `receipts`, `spot_checks` None: they were not looked for.
    """
    recorded = event.lines[line]
    made_by = derive_each(recorded.stream_id, priced, budget_micro, floor_most_bp=floor_most_bp)
    derivation = next((d for d in made_by if d.tariff.version == recorded.tariff_version), None)
    if derivation is None:
        raise ExplanationFailed(f"nothing is settled by the tariff of the line at {position}:{line}")
    shares = derivation.nodes.get(recorded.node_id, [])
    share = next((s for s in shares if s.reason == recorded.reason), None)
    if share is None and (recorded.reason != FLOOR_SHARE or not shares):
        raise ExplanationFailed(f"the log has no credit for the line at {position}:{line}")
    steps = _steps(derivation, recorded, share)
    tariff = derivation.tariff
    said = (recorded.tariff_version, recorded.rate_micro_per_gb, recorded.amount_micro)
    made = (tariff.version, tariff.rate_micro_per_gb, steps.amount_micro)
    delivered = (share.units, share.credited_bytes) if share else (0, 0)
    if (*said, recorded.units, recorded.credited_bytes) != (*made, *delivered):
        raise ExplanationFailed(
            f"the line at {position}:{line} gives {recorded.amount_micro} micro-units; the log before it gives "
            f"{steps.amount_micro}"
        )
    if receipts is not None and delivered != (
        sum(r.units for r in receipts),
        sum(r.credited_bytes for r in receipts),
    ):
        raise ExplanationFailed(f"the receipts do not add up to the line at {position}:{line}")
    return Earned(
        position=position,
        line=line,
        epoch=event.epoch,
        log_from=event.log_from,
        log_to=event.log_to,
        stream_id=recorded.stream_id,
        node_id=recorded.node_id,
        friend_id=recorded.friend_id,
        reason=recorded.reason,
        units=recorded.units,
        credited_bytes=recorded.credited_bytes,
        tariff=TariffUsed(
            version=tariff.version,
            position=tariff_at,
            rate_micro_per_gb=tariff.rate_micro_per_gb,
            fee_bp=tariff.fee_bp,
            floor_bp=tariff.floor_bp,
            plain_bp=tariff.plain_bp,
            plain_income_cap_bp=tariff.plain_income_cap_bp,
        ),
        steps=steps,
        amount_micro=recorded.amount_micro,
        receipts=receipts,
        spot_checks=spot_checks,
    )


def _steps(d: Derivation, recorded: SettlementLine, share: Share | None) -> Steps:
    node_id = recorded.node_id
    if share is None:  # an equal part of the floor
        part, weight = d.floors[node_id], 0
        quota = money.part_of(d.floor_pool_micro, 1, len(d.nodes))
        amount = part
    else:
        part, weight, amount = share.part_micro, share.weight, share.amount_micro
        quota = money.part_of(d.rest_micro, weight, d.weight)
    capped = share is not None and share.plain
    return Steps(
        stream_weight=d.weight,
        priced_micro=d.priced_micro,
        budget_micro=d.budget_micro,
        gross_micro=d.gross_micro,
        scaled_to_budget=d.gross_micro < d.priced_micro,
        fee_bp_of_gross_micro=d.fee_first_micro,
        pool_micro=d.pool_micro,
        floor_pool_micro=d.floor_pool_micro,
        nodes=len(d.nodes),
        rest_micro=d.rest_micro,
        weight=weight,
        quota_micro=quota,
        remainder_micro=part - quota,
        uncapped_micro=part,
        plain_most_micro=d.plain_most_micro[node_id] if capped else None,
        amount_micro=amount,
    )


# --- other lines


def _explain_released(log: Events, position: int, line: int, event: HoldsReleased) -> Moved:
    """The released amount is the friend's lines of the epoch, wherever their pages stand."""
    moved = _moved(position, line, event.transfers[line], epoch=event.epoch)
    found: dict[tuple[int, int], Part] = {}
    frozen: dict[int, tuple[int, int]] = {}  # dispute -> line
    for at, before in log.events(0, position):
        if isinstance(before, EpochSettled) and before.epoch == event.epoch:
            for n, x in enumerate(before.lines):
                if x.friend_id == moved.friend_id and x.amount_micro:
                    found[at, n] = Part(position=at, line=n, reason=x.reason, amount_micro=x.amount_micro)
        elif isinstance(before, DisputeOpened) and before.epoch == event.epoch:
            frozen[before.dispute] = (before.position, before.line)
        elif isinstance(before, DisputeRejected) and not before.transfers:
            frozen.pop(before.dispute, None)
    parts = tuple(part for place, part in found.items() if place not in frozen.values())
    if sum(p.amount_micro for p in parts) != moved.amount_micro:
        raise ExplanationFailed(f"the lines of epoch {event.epoch} do not add up to {position}:{line}")
    return replace(moved, parts=parts)


def _explain_dispute(
    log: Events, position: int, event: DisputeOpened | DisputeUpheld | DisputeRejected
) -> Moved:
    """The amount is that of the line in dispute."""
    opened = event
    if not isinstance(event, DisputeOpened):
        earlier = (e for _, e in log.events(0, position) if isinstance(e, DisputeOpened))
        opened = next((e for e in earlier if e.dispute == event.dispute), event)
    if not isinstance(opened, DisputeOpened):
        raise ExplanationFailed(f"dispute {event.dispute} was never opened")
    settled = next((e for _, e in log.events(opened.position, opened.position + 1)), None)
    lines = settled.lines if isinstance(settled, EpochSettled) else ()
    line = lines[opened.line] if opened.line < len(lines) else None
    if line is None or line.amount_micro != event.amount_micro:
        raise ExplanationFailed(f"the line {opened.position}:{opened.line} has another amount")
    reasons = {
        DisputeOpened: "disputed",
        DisputeUpheld: "dispute_upheld",
        DisputeRejected: "dispute_rejected",
    }
    return Moved(
        position=position,
        line=0,
        friend_id=line.friend_id,
        reason=reasons[type(event)],
        epoch=opened.epoch,
        batch_id=None,
        payout_line=None,
        amount_micro=event.amount_micro,
        parts=(
            Part(
                position=opened.position, line=opened.line, reason=line.reason, amount_micro=line.amount_micro
            ),
        ),
        note=event.reason,
    )


def _explain_returned(log: Events, position: int, event: PayoutLineReturned) -> Moved:
    """A part of what was paid, less what had come back before."""
    moved = _moved(
        position,
        0,
        event.transfer,
        batch_id=event.batch_id,
        payout_line=event.line,
        note=event.reason,
    )
    parts: list[Part] = []
    left = 0
    for at, before in log.events(0, position):
        if not isinstance(before, PayoutLineConfirmed | PayoutLineReturned):
            continue
        if (before.batch_id, before.line) == (event.batch_id, event.line):
            amount = before.transfer.postings[-1].amount_micro
            left += amount if isinstance(before, PayoutLineConfirmed) else -amount
            parts.append(Part(position=at, line=0, reason=before.transfer.reason, amount_micro=amount))
    if moved.amount_micro > left:
        raise ExplanationFailed(f"more came back at {position}:0 than was paid")
    return replace(moved, parts=tuple(parts))


def _friends(transfer: Transfer) -> list[UUID]:
    return [UUID(p.account.split(":")[1]) for p in transfer.postings if p.account.startswith("friend:")]


def _moved(
    position: int,
    line: int,
    transfer: Transfer,
    *,
    epoch: int | None = None,
    batch_id: UUID | None = None,
    payout_line: int | None = None,
    note: str = "",
) -> Moved:
    target = transfer.postings[-1]
    return Moved(
        position=position,
        line=line,
        friend_id=_friends(transfer)[0],
        reason=transfer.reason,
        epoch=epoch,
        batch_id=batch_id,
        payout_line=payout_line,
        amount_micro=target.amount_micro,
        parts=(),
        note=note,
    )
