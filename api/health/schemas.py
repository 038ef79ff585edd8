"""What the health and key endpoints answer."""

from pydantic import BaseModel, Field


class Health(BaseModel):
    status: str = "ok"


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, str] = Field(
        description="postgres, projections, rtmp, duties, valkey: ok, or what is wrong"
    )


class KeyOut(BaseModel):
    key_id: str
    public_key: str
    retired: bool


class Keys(BaseModel):
    """Hex. Retired keys stay: what they signed stays verifiable."""

    ticket: list[KeyOut]
    log: list[KeyOut]
