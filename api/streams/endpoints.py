"""Streams: register, look, rotate the key, fund, price."""

from collections.abc import Mapping
from uuid import UUID

from fastapi import APIRouter, Response

from api.auth import Creator, Operator, OperatorOrCreator
from api.balances.schemas import DisputeOut, EstimateOut, OpenDispute
from api.deps import Services, ServicesDep
from api.directory import Role
from api.newcomers import new_stream_key
from api.newcomers import register_stream as register
from api.problems import Problem, ProblemType, not_found, responses
from api.streams.schemas import (
    Budget,
    CarryingNode,
    ChangeTariff,
    CrewMember,
    Deposit,
    KeyRotated,
    OwnStream,
    OwnStreams,
    RegisterStream,
    StreamOut,
    StreamRegistered,
    Streams,
    TariffChanged,
    TariffOut,
)
from api.text import SlugPath
from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.stream import Stream
from ledger.ids import BOOK_ID
from ledger.money import budget_account
from ledger.services import budgets, crew
from ledger.services import streams as commands
from ledger.services.disputes import open_dispute
from ledger.settlement import Tariff
from projections.views import StreamView

router = APIRouter(prefix="/api/streams", tags=["streams"])
creators = APIRouter(prefix="/api/creators", tags=["streams"])

_AUTH = (
    ProblemType.UNAUTHENTICATED,
    ProblemType.FORBIDDEN,
    ProblemType.RATE_LIMITED,
    ProblemType.INVALID_FIELDS,
)


@router.post("", status_code=201, responses=responses(*_AUTH, ProblemType.STREAM_EXISTS))
def register_stream(
    body: RegisterStream, response: Response, at: ServicesDep, _: Operator
) -> StreamRegistered:
    """Registering the same stream for the same owner again answers 200 and shows no secret."""
    known = commands.load_stream(at.ledger, body.slug)
    if known is None:
        try:
            return _register(body, at)
        except DomainError:
            known = commands.load_stream(at.ledger, body.slug)  # somebody else was faster
            if known is None:
                raise
    owner_name = at.directory.person_name(known.owner_id) if known.owner_id else None
    if body.owner_name != owner_name:
        raise Problem(ProblemType.STREAM_EXISTS, "a stream of this name is registered for another owner")
    response.status_code = 200
    return _registered(known.id, body.slug, at, stream_key=None, creator_token=None)


def _register(body: RegisterStream, at: Services) -> StreamRegistered:
    new = register(at.ledger, at.directory, body.slug, owner_name=body.owner_name, at_us=at.now_us())
    return _registered(
        new.stream_id, body.slug, at, stream_key=new.stream_key, creator_token=new.creator_token
    )


def _registered(
    stream_id: UUID, slug: str, at: Services, *, stream_key: str | None, creator_token: str | None
) -> StreamRegistered:
    return StreamRegistered(
        stream_id=stream_id,
        slug=slug,
        stream_key=stream_key,
        creator_token=creator_token,
        creator_url=f"{at.settings.public_url}/creator#{creator_token}" if creator_token else None,
        rtmp_server=at.settings.rtmp_url,
        watch_url=f"{at.settings.public_url}/watch/{slug}",
    )


@router.get("", responses=responses())
def list_streams(at: ServicesDep) -> Streams:
    return Streams(streams=[stream_out(view, at) for view in at.reads.streams()])


@router.get("/{slug}", responses=responses(ProblemType.NOT_FOUND, ProblemType.INVALID_FIELDS))
def show_stream(slug: SlugPath, at: ServicesDep) -> StreamOut:
    view = at.reads.stream(slug)
    if view is None:
        raise not_found("there is no stream of this name")
    return stream_out(view, at)


@creators.get(
    "/me/streams",
    responses=responses(ProblemType.UNAUTHENTICATED, ProblemType.FORBIDDEN, ProblemType.RATE_LIMITED),
)
def own_streams(at: ServicesDep, token: Creator) -> OwnStreams:
    """The creator's streams: who carries them, what is left of the budget, what was earned of it."""
    unit = crew.crew(at.ledger).unit
    book = at.ledger.load_or_new(Book, BOOK_ID)
    nodes = at.reads.nodes()
    known = at.directory.node_names([node.node_id for node in nodes])
    names: dict[UUID, list[str]] = {}
    for node in nodes:
        if node.node_id in known:
            names.setdefault(node.friend_id, []).append(known[node.node_id])
    return OwnStreams(
        streams=[
            _own(view, at, unit, book.newest_tariff(view.stream_id), names)
            for view in at.reads.streams()
            if view.owner_id == token.subject_id
        ]
    )


def _own(
    view: StreamView, at: Services, unit: str, tariff: Tariff | None, names: Mapping[UUID, list[str]]
) -> OwnStream:
    carried = at.reads.carried(view.stream_id)
    estimated = at.estimates.of(view.stream_id)  # before the budget, which the settlement of it lessens
    budget = at.reads.balance(budget_account(view.stream_id))
    refused, refused_us = at.refusal(view.slug) or (None, None)
    return OwnStream(
        stream=stream_out(view, at),
        unit=unit,
        budget_micro=budget.amount_micro if budget else 0,
        earned_micro=sum(c.earned_micro for c in carried),
        estimate=EstimateOut.of(estimated, after=budget),
        tariff=TariffOut(**{name: getattr(tariff, name) for name in budgets.TARIFF_FIELDS})
        if tariff
        else None,
        crew=[
            CrewMember(
                name=", ".join(names.get(c.friend_id, ["a friend"])),
                credited_bytes=c.credited_bytes,
                earned_micro=c.earned_micro,
            )
            for c in carried
        ],
        refused=refused,
        refused_us=refused_us,
    )


def stream_out(view: StreamView, at: Services) -> StreamOut:
    base = at.settings.public_url
    audience = at.audience(view.slug)
    names = at.directory.node_names(audience.by_node) if audience.by_node else {}
    carrying = [
        CarryingNode(node_id=node_id, name=names.get(node_id, "a friend"), viewers=viewers)
        for node_id, viewers in audience.by_node.items()
    ]
    return StreamOut(
        stream_id=view.stream_id,
        slug=view.slug,
        state=view.state,
        interrupted=view.interrupted,
        viewers=audience.viewers,
        crew=sorted(carrying, key=lambda n: (-n.viewers, n.name, n.node_id)),
        started_us=view.started_us if view.state == "LIVE" else None,
        playlist_url=f"{base}/live/{view.slug}.m3u8",
        flv_url=f"{base}/live/{view.slug}.flv",
        watch_url=f"{base}/watch/{view.slug}",
    )


@router.post("/{slug}/key", responses=responses(*_AUTH, ProblemType.NOT_FOUND, ProblemType.NOT_ALLOWED))
def rotate_key(slug: SlugPath, at: ServicesDep, token: OperatorOrCreator) -> KeyRotated:
    """The old key opens nothing from now on; a publisher who is live stays so."""
    stream = _load(slug, at)
    if token.role is Role.CREATOR and token.subject_id != stream.owner_id:
        raise Problem(ProblemType.FORBIDDEN, "this is another creator's stream")
    stream_key = new_stream_key(slug)
    commands.rotate_key(at.ledger, stream.id, stream_key=stream_key, at_us=at.now_us())
    return KeyRotated(stream_key=stream_key)


@router.post("/{slug}/budget", responses=responses(*_AUTH, ProblemType.NOT_FOUND, ProblemType.NOT_ALLOWED))
def deposit(slug: SlugPath, body: Deposit, at: ServicesDep, _: Operator) -> Budget:
    stream = _load(slug, at)
    budget_micro = budgets.deposit(
        at.ledger, stream.id, amount_micro=body.amount_micro, reference=body.reference, at_us=at.now_us()
    )
    return Budget(stream_id=stream.id, budget_micro=budget_micro)


@router.post("/{slug}/tariff", responses=responses(*_AUTH, ProblemType.NOT_FOUND, ProblemType.NOT_ALLOWED))
def change_tariff(slug: SlugPath, body: ChangeTariff, at: ServicesDep, _: Operator) -> TariffChanged:
    stream = _load(slug, at)
    version = budgets.set_tariff(at.ledger, stream.id, at_us=at.now_us(), **body.model_dump())
    return TariffChanged(stream_id=stream.id, tariff_version=version)


@router.post(
    "/{slug}/disputes",
    status_code=201,
    responses=responses(*_AUTH, ProblemType.NOT_FOUND, ProblemType.NOT_ALLOWED),
)
def dispute_line(slug: SlugPath, body: OpenDispute, at: ServicesDep, token: OperatorOrCreator) -> DisputeOut:
    """Freeze a pending settlement line of the stream until the operator has decided."""
    stream = _load(slug, at)
    creator = token.role is Role.CREATOR
    if creator and token.subject_id != stream.owner_id:
        raise Problem(ProblemType.FORBIDDEN, "this is another creator's stream")
    dispute = open_dispute(
        at.ledger,
        body.position,
        body.line,
        reason=body.reason,
        stream_id=stream.id,
        opened_by="creator" if creator else "operator",
        at_us=at.now_us(),
    )
    return DisputeOut.of(dispute)


def _load(slug: str, at: Services) -> Stream:
    stream = commands.load_stream(at.ledger, slug)
    if stream is None:
        raise not_found("there is no stream of this name")
    return stream
