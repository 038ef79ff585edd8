"""What the invite and node endpoints take and answer."""

from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.text import Count, Name, Port, Reason
from ledger.batch import VERSION


def _base_url(text: str) -> str:
    """A node's address, as viewers' players will use it: scheme, host, port, perhaps a path."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as e:
        raise ValueError("not a URL") from e
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must look like http://host:port or https://host")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("must have no user, password, query or fragment")
    return text.rstrip("/")


# Only what a URL may hold unescaped (RFC 3986): nothing that could break out of a playlist line.
_URL_CHARS = r"^https?://[A-Za-z0-9._~:/\[\]%-]+$"
NodeUrl = Annotated[str, Field(max_length=200, pattern=_URL_CHARS), AfterValidator(_base_url)]


class CreateInvite(BaseModel):
    model_config = ConfigDict(extra="forbid")

    friend_name: Name


class InviteCreated(BaseModel):
    code: str = Field(description="admits one node; shown once")
    friend_id: UUID
    friend_token: str = Field(description="for the friend's own page and statement; shown once")
    friend_url: str
    command: str = Field(description="what the friend runs")
    expires_us: int


class JoinNode(BaseModel):
    invite_code: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\x21-\x7e]+$")]
    name: Name
    url: NodeUrl | None = Field(
        None, description="null: the hub uses the address the request came from, and `port`"
    )
    port: Port


class NodeJoined(BaseModel):
    node_id: UUID
    friend_id: UUID
    ticket_keys: list[str] = Field(description="hex public keys of the hub that sign tickets")
    heartbeat_s: int


class Heartbeat(BaseModel):
    url: NodeUrl | None = None
    port: Port
    viewers: Count
    uploaded_bytes: Count = Field(description="since the node started; for people, nothing is paid by it")


class Earned(BaseModel):
    unit: str = Field(description="what amounts are millionths of")
    pending_micro: int
    available_micro: int
    in_flight_micro: int
    paid_micro: int
    estimate_micro: int | None = Field(
        description="what is not settled yet, as if it were now: in none of the others; null: not known"
    )


class HeartbeatAnswer(BaseModel):
    status: str = Field(description="active, suspended or retired")
    reason: str = Field("", description="why it was suspended or retired")
    ticket_keys: list[str]
    earned: Earned
    batch_version: int = Field(VERSION, description="the newest batch format this hub takes")


class ChangeStanding(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: Reason


class Standing(BaseModel):
    node_id: UUID
    status: str = Field(description="active, suspended or retired")
    reason: str = Field(description="why it was suspended or retired, as the log has it")


class NodeOut(BaseModel):
    node_id: UUID
    friend_id: UUID
    name: str
    state: str = Field(description="joined, online, offline, suspended or retired")
    state_reason: str
    health: int = Field(description="0 to 1000")
    viewers: int = Field(description="served now, as the node says")
    joined_us: int
    last_seen_us: int
    probes_ok: int
    probes_bad: int
    receipts_accepted: int
    receipts_refused: int
    verdicts: dict[str, int] = Field(description="receipts by the hub's answer")
    caps: dict[str, int] = Field(description="why those that were capped were")
    credited_units: int
    credited_bytes: int


class Nodes(BaseModel):
    nodes: list[NodeOut]
