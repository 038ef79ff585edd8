"""What the balance and statement endpoints answer. Amounts are integers in millionths of the crew's unit."""

from typing import Annotated, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api.estimates import Estimated
from ledger.aggregates.disputes import Dispute
from projections.views import Balance


class BalanceOut(BaseModel):
    account: str
    amount_micro: int
    last_position: int = Field(description="log position of the last transfer that touched it")


class Balances(BaseModel):
    unit: str
    balances: list[BalanceOut]


class StatementLineOut(BaseModel):
    position: int = Field(description="where it stands in the log")
    line: int
    kind: str = Field(
        description="earned, released, payout_reserved, payout_confirmed, payout_failed, payout_returned, "
        "disputed, dispute_upheld, dispute_rejected, adjusted_up or adjusted_down"
    )
    reason: str
    at_us: int
    epoch: int | None
    stream_id: UUID | None
    node_id: UUID | None
    units: int
    credited_bytes: int
    rate_micro_per_gb: int
    amount_micro: int
    batch_id: UUID | None
    payout_line: int | None


class EstimateOut(BaseModel):
    """What is not settled yet, as if it were now. In no balance, owed by nobody, and never to be added to one."""

    credited_bytes: int
    amount_micro: int
    ends_us: int = Field(description="when the running epoch ends; settled within seconds of that")
    position: int = Field(description="the log before it was read")

    @classmethod
    def of(cls, found: Estimated | None, *, after: Balance | None) -> Self | None:
        """None: not known, or from before the last transfer of that account, and perhaps settled by it."""
        if found is None or (after is not None and after.last_position >= found.position):
            return None
        return cls(
            credited_bytes=found.credited_bytes,
            amount_micro=found.amount_micro,
            ends_us=found.ends_us,
            position=found.position,
        )


class Statement(BaseModel):
    friend_id: UUID
    name: str
    unit: str
    pending_micro: int
    available_micro: int
    in_flight_micro: int
    paid_micro: int
    helping_now: int = Field(description="viewers the friend's nodes serve now")
    estimate: EstimateOut | None = Field(description="null: not known at the moment")
    lines: list[StatementLineOut]
    next: str | None = Field(description="`before` of the next, older page")


class TariffOut(BaseModel):
    version: int = Field(description="0: there was none")
    position: int | None = Field(description="log position of the event that set it")
    rate_micro_per_gb: int
    fee_bp: int
    floor_bp: int
    plain_bp: int
    plain_income_cap_bp: int


class StepsOut(BaseModel):
    """The arithmetic in its order; weights are bytes times basis points of a full byte, and may be above 2^53."""

    stream_weight: int
    priced_micro: int = Field(description="stream_weight x rate / 10^13, rounded down")
    budget_micro: int
    gross_micro: int = Field(description="the smaller of priced and budget")
    scaled_to_budget: bool
    fee_bp_of_gross_micro: int
    pool_micro: int = Field(description="gross - fee")
    floor_pool_micro: int = Field(description="shared equally among the nodes that served")
    nodes: int
    rest_micro: int = Field(description="shared by weight")
    weight: int = Field(description="of this line; 0 for a floor share")
    quota_micro: int = Field(description="this line's share, rounded down")
    remainder_micro: int = Field(
        description="1 when its remainder was among the largest (ties by node), else 0; of a floor share also what "
        "its bound took (negative), or the bounds of others left for it"
    )
    uncapped_micro: int
    plain_most_micro: int | None = Field(description="the most the node's plain lines may bring together")
    amount_micro: int


class ReceiptOut(BaseModel):
    position: int
    receipt: int = Field(description="which of that event's, from 0")
    late: bool
    units: int
    credited_bytes: int


class PartOut(BaseModel):
    position: int
    line: int
    reason: str
    amount_micro: int


class ExplanationOut(BaseModel):
    kind: str = Field(description="earned: a settlement line; moved: pending, available, in flight, paid")
    position: int
    line: int
    friend_id: UUID
    reason: str
    amount_micro: int
    epoch: int | None = None
    log_from: int | None = Field(
        None, description="credits in [log_from, log_to) were settled, and what waited"
    )
    log_to: int | None = None
    stream_id: UUID | None = None
    node_id: UUID | None = None
    units: int = 0
    credited_bytes: int = 0
    tariff: TariffOut | None = None
    steps: StepsOut | None = None
    receipts: list[ReceiptOut] | None = Field(None, description="null: only the whole log tells")
    spot_checks: list[ReceiptOut] | None = Field(
        None,
        description="of a line for plain players: left out, they were the hub's own; null: not looked for",
    )
    parts: list[PartOut] = Field(
        [],
        description="the settlement lines that a released amount adds up; of what came back, what had been paid",
    )
    note: str = Field("", description="what was said when somebody decided it")
    batch_id: UUID | None = None
    payout_line: int | None = None


class OpenDispute(BaseModel):
    model_config = ConfigDict(extra="forbid")

    position: Annotated[int, Field(strict=True, ge=0, le=(1 << 53) - 1)]
    line: Annotated[int, Field(strict=True, ge=0, le=65_535)] = 0
    # Into the log, which cannot forget: a word, not a story.
    reason: Annotated[
        str, Field(min_length=1, max_length=100, pattern=r"^[\x20-\x7e]+$", examples=["fewer bytes"])
    ]


class DisputeOut(BaseModel):
    dispute: int
    position: int
    line: int
    amount_micro: int
    state: str = Field(description="open, upheld or rejected")

    @classmethod
    def of(cls, dispute: Dispute) -> Self:
        return cls(
            dispute=dispute.number,
            position=dispute.position,
            line=dispute.line,
            amount_micro=dispute.amount_micro,
            state=dispute.state,
        )
