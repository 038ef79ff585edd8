"""What the balance and statement endpoints answer. Amounts are integers in millionths of the crew's unit."""

from uuid import UUID

from pydantic import BaseModel, Field


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
    kind: str = Field(description="earned, released, payout_reserved, payout_confirmed or payout_failed")
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


class Statement(BaseModel):
    friend_id: UUID
    name: str
    unit: str
    pending_micro: int
    available_micro: int
    in_flight_micro: int
    paid_micro: int
    helping_now: int = Field(description="viewers the friend's nodes serve now")
    lines: list[StatementLineOut]
    next: str | None = Field(description="`before` of the next, older page")
