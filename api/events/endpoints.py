"""Live updates as Server-Sent Events: a friend's balances and nodes, and the state of a stream.

The id of an event is a log position: everything before it is in the data. A client that comes back with it as
Last-Event-ID is sent the lines since.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.auth import Friend
from api.balances.endpoints import balances_of, estimate_of, helping, line_out
from api.balances.schemas import EstimateOut, StatementLineOut
from api.deps import PeerIp, Services, ServicesDep, counted_as
from api.events.schemas import NodeHealth, StatementNews
from api.live import Live
from api.problems import Problem, ProblemType, not_found, responses
from api.streams.endpoints import stream_out
from api.streams.schemas import StreamOut
from api.text import SlugPath

router = APIRouter(prefix="/api", tags=["live"])

LINES_MAX: Final = 50
_POSITION_MAX: Final = (1 << 53) - 1
LastEventId = Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=_POSITION_MAX)]


def _live(request: Request) -> Live:
    found: Live = request.app.state.live
    return found


LiveDep = Annotated[Live, Depends(_live)]


async def _place_of_token(live: LiveDep, token: Friend) -> AsyncIterator[UUID]:
    if token.subject_id is None:
        raise Problem(ProblemType.FORBIDDEN, "this token belongs to no friend")
    with live.place(token.sha256.hex()):
        yield token.subject_id


async def _place_of_address(live: LiveDep, ip: PeerIp) -> AsyncIterator[None]:
    with live.place(counted_as(ip)):
        yield


def _known_slug(slug: SlugPath, at: ServicesDep) -> str:
    if at.reads.stream(slug) is None:
        raise not_found("there is no stream of this name")
    return slug


@dataclass(frozen=True, slots=True)
class _Statement:
    amounts: tuple[tuple[str, int], ...]
    helping_now: int
    estimate: EstimateOut | None
    nodes: tuple[NodeHealth, ...]
    lines: tuple[StatementLineOut, ...]  # the newest


@dataclass(frozen=True, slots=True)
class _At:
    """A state and where in the log it stands; two are equal when the states are."""

    position: int
    state: _Statement | StreamOut

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _At) and self.state == other.state

    __hash__ = None  # type: ignore[assignment]


@router.get(
    "/friends/me/events",
    response_class=EventSourceResponse,
    responses=responses(
        ProblemType.UNAUTHENTICATED,
        ProblemType.FORBIDDEN,
        ProblemType.RATE_LIMITED,
        ProblemType.INVALID_FIELDS,
    ),
)
async def follow_statement(
    at: ServicesDep,
    live: LiveDep,
    friend_id: Annotated[UUID, Depends(_place_of_token)],
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """Balances, nodes and new lines of the friend, whenever something changed. Ends after ten minutes: come again."""
    since = last_event_id
    async for found in live.follow(friend_id, partial(_statement, at, friend_id)):
        assert isinstance(found.state, _Statement)
        news = _news(found.state, since)
        yield ServerSentEvent(event="statement", id=str(found.position), data=news)
        since = found.position


@router.get(
    "/streams/{slug}/events",
    response_class=EventSourceResponse,
    responses=responses(ProblemType.NOT_FOUND, ProblemType.RATE_LIMITED, ProblemType.INVALID_FIELDS),
    dependencies=[Depends(_place_of_address)],
)
async def follow_stream(
    at: ServicesDep, live: LiveDep, slug: Annotated[str, Depends(_known_slug)]
) -> AsyncIterator[ServerSentEvent]:
    """The stream as `GET /api/streams/{slug}` shows it, whenever it changed. Ends after ten minutes: come again."""
    async for found in live.follow(slug, partial(_stream, at, slug)):
        yield ServerSentEvent(event="stream", id=str(found.position), data=found.state)


def _statement(at: Services, friend_id: UUID) -> _At:
    position = _position(at)
    mine = [view for view in at.reads.nodes() if view.friend_id == friend_id]
    names = at.directory.node_names([view.node_id for view in mine]) if mine else {}
    return _At(
        position,
        _Statement(
            amounts=tuple(balances_of(at, friend_id).items()),
            helping_now=helping(at, friend_id),
            estimate=estimate_of(at, friend_id),
            nodes=tuple(
                NodeHealth(
                    node_id=v.node_id,
                    name=names.get(v.node_id, ""),
                    state=v.state,
                    state_reason=v.state_reason,
                    health=v.health,
                )
                for v in mine
            ),
            lines=tuple(line_out(line) for line in at.reads.statement(friend_id, LINES_MAX)),
        ),
    )


def _news(state: _Statement, since: int | None) -> StatementNews:
    lines = [line for line in state.lines if since is not None and line.position >= since]
    return StatementNews(
        **dict(state.amounts),
        helping_now=state.helping_now,
        estimate=state.estimate,
        nodes=list(state.nodes),
        lines=lines,
        reload=since is None or len(lines) == LINES_MAX,
    )


def _stream(at: Services, slug: str) -> _At | None:
    position, view = _position(at), at.reads.stream(slug)
    return _At(position, stream_out(view, at)) if view is not None else None


def _position(at: Services) -> int:
    """Read before the state: what stands in the log before it is in the state."""
    return min(at.reads.positions().values(), default=0)
