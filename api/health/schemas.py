"""What the health and key endpoints answer."""

from pydantic import BaseModel, Field


class Health(BaseModel):
    status: str = "ok"


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, str] = Field(
        description="postgres, projections, rtmp, duties, valkey: ok, or what is wrong"
    )


class ProjectionLag(BaseModel):
    name: str
    position: int = Field(description="events before it are in the read model")
    events: int = Field(description="not yet applied")
    behind_us: int = Field(description="age of the oldest of them")
    stopped: str = Field(description="why it cannot go on until somebody looks; empty while it goes on")


class WorkerDuty(BaseModel):
    name: str
    failing: bool = Field(description="until somebody looks: the reason is in the hub's log")
    overdue_s: int = Field(description="since when it should have been heard; 0: in time")


class Status(BaseModel):
    """For the operator's page."""

    log_events: int
    projections: list[ProjectionLag]
    duties: list[WorkerDuty]


class KeyOut(BaseModel):
    key_id: str
    public_key: str
    retired: bool


class Keys(BaseModel):
    """Hex. Retired keys stay: what they signed stays verifiable."""

    ticket: list[KeyOut]
    log: list[KeyOut]
