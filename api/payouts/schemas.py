"""What the payout endpoints take and answer."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api.text import AmountMicro


class PlanPayout(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rail: Literal["csv", "pain.001"] = "csv"
    threshold_micro: AmountMicro | None = Field(None, description="null: the crew's setting")
    dry_run: Annotated[bool, Field(strict=True)] = False


class PlannedLine(BaseModel):
    line: int
    friend_id: UUID
    amount_micro: int


class WaitingAmount(BaseModel):
    friend_id: UUID
    amount_micro: int
    reason: str = Field(
        description="below_threshold, below_smallest (of what the rail can pay), no_destination, came_back (what was "
        "paid to this destination), in_open_payout, batch_limit or day_limit"
    )


class PayoutPlan(BaseModel):
    batch_id: UUID | None = Field(description="null: nobody to pay, or a dry run")
    total_micro: int
    lines: list[PlannedLine]
    waiting: list[WaitingAmount]
    further: list[UUID] = Field([], description="more payouts, for what does not fit in this one")


class Decided(BaseModel):
    batch_id: UUID
    state: str


class CancelPayout(BaseModel):
    model_config = ConfigDict(extra="forbid")

    # Into the log, which cannot forget: a word, not a story.
    reason: Annotated[
        str, Field(min_length=1, max_length=100, pattern=r"^[\x20-\x7e]+$", examples=["wrong rail"])
    ]


class PayoutLineOut(BaseModel):
    line: int
    friend_id: UUID
    amount_micro: int
    state: str
    attempts: int
    outcome: str
    reference: str
    returned_micro: int = Field(description="came back after it was confirmed; available again")


class PayoutOut(BaseModel):
    batch_id: UUID
    number: int = Field(description="by which `streamrp2p payout` takes it: 1, 2, ...")
    next: Literal["approve", "run", "reconcile", ""] = Field(
        description="the command of `streamrp2p payout` that takes it on; empty when it is over"
    )
    rail: str
    state: str = Field(description="planned, approved, cancelled or finished")
    planned_us: int
    planned_by: str = Field(description="empty for payouts of before that was recorded")
    decided_us: int | None
    decided_by: str
    reason: str
    total_micro: int
    confirmed_micro: int
    failed_micro: int
    returned_micro: int = Field(description="of what was confirmed, came back later")
    line_count: int
    lines: list[PayoutLineOut] = Field(description="empty in the list of payouts")


class Payouts(BaseModel):
    unit: str = Field(description="what amounts are millionths of")
    payouts: list[PayoutOut]
