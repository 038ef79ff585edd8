"""What the stream endpoints take and answer."""

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api.balances.schemas import EstimateOut
from api.text import AmountMicro, Name, Reference, Slug

_Bp = Annotated[int, Field(strict=True, ge=0, le=10_000)]


class RegisterStream(BaseModel):
    model_config = ConfigDict(extra="forbid")

    slug: Slug
    owner_name: Name | None = None


class StreamRegistered(BaseModel):
    stream_id: UUID
    slug: str
    stream_key: str | None = Field(description="shown once: null when the stream was registered before")
    creator_token: str | None = Field(description="for the creator's requests; shown once")
    creator_url: str | None = Field(description="the creator's page, with that token in it; shown once")
    rtmp_server: str = Field(description='goes into "Server" in OBS')
    watch_url: str


class KeyRotated(BaseModel):
    stream_key: str


class CarryingNode(BaseModel):
    node_id: UUID
    name: str
    viewers: int


class StreamOut(BaseModel):
    stream_id: UUID
    slug: str
    state: str = Field(description="READY, LIVE, OFFLINE, ARCHIVED or STALE")
    interrupted: bool = Field(description="LIVE, but the publisher is away and may come back")
    viewers: int
    crew: list[CarryingNode] = Field(description="the nodes that carry the stream now")
    started_us: int | None
    playlist_url: str
    flv_url: str
    watch_url: str


class TariffOut(BaseModel):
    """Parts in basis points; what each number means: docs/creators.md."""

    rate_micro_per_gb: int
    fee_bp: int
    floor_bp: int
    plain_bp: int
    plain_income_cap_bp: int


class Streams(BaseModel):
    streams: list[StreamOut]


class CrewMember(BaseModel):
    name: str = Field(description="as their nodes are called")
    credited_bytes: int
    earned_micro: int


class OwnStream(BaseModel):
    """A stream as its creator sees it. What was settled is in `crew` and `earned_micro`; the rest follows hourly."""

    stream: StreamOut
    unit: str
    budget_micro: int = Field(description="what is left of it")
    earned_micro: int = Field(description="what the crew earned of it so far, without the hub's fee")
    estimate: EstimateOut | None = Field(
        description="what leaves the budget for what is not settled yet, the fee included; null: not known"
    )
    tariff: TariffOut | None = Field(description="the last one set; null: nothing is paid")
    crew: list[CrewMember] = Field(description="everybody who was ever credited, the most bytes first")
    refused: str | None = Field(description="why what the encoder sent was refused; null since it is taken")
    refused_us: int | None


class OwnStreams(BaseModel):
    streams: list[OwnStream]


class Deposit(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount_micro: AmountMicro
    reference: Reference = Field(description="the same reference again changes nothing")


class Budget(BaseModel):
    stream_id: UUID
    budget_micro: int


class ChangeTariff(BaseModel):
    """What is left out stays as it is. Takes effect with the next epoch; a first tariff at once."""

    model_config = ConfigDict(extra="forbid")

    rate_micro_per_gb: Annotated[int, Field(strict=True, ge=0, le=10**12)] | None = None
    fee_bp: _Bp | None = None
    floor_bp: _Bp | None = None
    plain_bp: _Bp | None = None
    plain_income_cap_bp: Annotated[int, Field(strict=True, ge=0, le=9_999)] | None = None


class TariffChanged(BaseModel):
    stream_id: UUID
    tariff_version: int
