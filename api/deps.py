"""What endpoints are given: the services the hub filled in, the peer's address, bounded bodies, who is asking.

Invariant: an endpoint reaches the ledger, the read models and the clock only through `Services`; there is no global.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Request

from api.directory import Directory
from api.estimates import Estimates
from api.levels import Levels
from api.liveness import Liveness
from api.problems import Problem, ProblemType
from api.ratelimit import RateLimiter
from api.replays import Replays
from ledger.application import Ledger
from ledger.rails.given import Given
from ledger.rails.returned import Return
from ledger.services.delivery import DeliveryDesk
from projections.queries import Queries

BODY_BYTES_MAX: Final = 65_536  # of any request; octet-stream endpoints take less


@dataclass(frozen=True, slots=True)
class Audience:
    """Who is watching a stream now, and through which nodes."""

    viewers: int
    by_node: Mapping[UUID, int]  # node -> viewers it serves


@dataclass(frozen=True, slots=True)
class ApiSettings:
    crew_name: str
    rtmp_url: str  # what goes into OBS's "Server" field, for example rtmp://hub.example:1935/live
    public_url: str  # what people and programs reach the hub by, without a trailing slash


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Made by the hub. Everything synchronous here is called from the thread pool."""

    settings: ApiSettings
    ledger: Ledger
    desk: DeliveryDesk
    reads: Queries
    directory: Directory
    liveness: Liveness
    estimates: Estimates
    limiter: RateLimiter
    log_folder: Path  # the published log: checkpoint, tile/...
    now_us: Callable[[], int]
    # (slug, viewer key of 32 bytes, peer address, who watches when known) -> session, or None when the stream is not
    # live. Takes part in steering, so it runs on the event loop.
    open_signing_session: Callable[[str, bytes, str, UUID | None], Awaitable[UUID | None]]
    audience: Callable[[str], Audience]  # by slug; memory only
    commit_network: Callable[
        [str, bytes], bytes
    ]  # (peer address, what makes a loopback unique) -> commitment
    ingest_ready: Callable[[], bool] = field(default=lambda: True)
    node_left: Callable[[UUID], None] = field(default=lambda _node_id: None)  # it said goodbye
    refusal: Callable[[str], tuple[str, int] | None] = field(
        default=lambda _slug: None
    )  # slug -> why what its encoder sent was refused, and when (Unix us); None: it is taken
    replays: Replays = field(default_factory=Replays)
    levels: Levels = field(default_factory=Levels)
    given: Callable[[], Given] = field(default=dict)  # what rails were given, by payout
    returned: Callable[[], Sequence[Return]] = field(
        default=tuple
    )  # what came back of payouts, as files remember
    troubles: Callable[[], list[str]] = field(
        default=list
    )  # duties of the hub that fail until somebody looks
    overdue: Callable[[], dict[str, int]] = field(
        default=dict
    )  # duties of the hub -> seconds since they should have been heard; 0: in time


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


def peer_ip(request: Request) -> str:
    """As the server sees it; behind a proxy, `hub.proxies` has put in its place whom the proxy speaks for."""
    return request.client.host if request.client else "127.0.0.1"


ServicesDep = Annotated[Services, Depends(services)]
PeerIp = Annotated[str, Depends(peer_ip)]


def body_up_to(limit: int) -> Callable[[Request], Awaitable[bytes]]:
    """A dependency: the raw body of at most `limit` bytes."""

    async def read(request: Request) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise Problem(ProblemType.TOO_LARGE, f"at most {limit} bytes are taken here")
            parts.append(part)
        return b"".join(parts)

    return read


def limited(rule: str, who: str, at: Services) -> None:
    """Raises a 429 Problem when `who` has used up the rule of that name (api.ratelimit.Rules)."""
    wait_s = at.limiter.hit(rule, who)
    if wait_s is not None:
        raise Problem(
            ProblemType.RATE_LIMITED,
            f"too many requests: wait {wait_s} s",
            headers={"Retry-After": str(wait_s)},
        )


def per_ip(rule: str) -> Callable[[Services, str], None]:
    """A dependency that counts the request under the peer's address. Runs in the thread pool."""

    def count(at: ServicesDep, ip: PeerIp) -> None:
        limited(rule, counted_as(ip), at)

    return count


def counted_as(ip: str) -> str:
    """One customer of a network: an IPv4 address, or an IPv6 /64, in which everybody has 2^64 addresses."""
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return ip
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
