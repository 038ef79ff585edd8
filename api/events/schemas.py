"""What the live endpoints send, as the data of an event."""

from uuid import UUID

from pydantic import BaseModel, Field

from api.balances.schemas import EstimateOut, StatementLineOut


class NodeHealth(BaseModel):
    node_id: UUID
    name: str
    state: str
    state_reason: str = Field(description="why it was suspended or retired")
    health: int = Field(description="0 to 1000")


class StatementNews(BaseModel):
    pending_micro: int
    available_micro: int
    in_flight_micro: int
    paid_micro: int
    helping_now: int
    estimate: EstimateOut | None
    nodes: list[NodeHealth]
    lines: list[StatementLineOut] = Field(
        description="since Last-Event-ID or the event before, newest first; one may come twice"
    )
    reload: bool = Field(description="there are more lines than these: get the statement")
