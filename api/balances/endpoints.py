"""Balances of all accounts, for everybody (they are in the public log), and a friend's own statement."""

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query

from api.auth import Friend
from api.balances.schemas import (
    BalanceOut,
    Balances,
    DisputeOut,
    EstimateOut,
    ExplanationOut,
    OpenDispute,
    Statement,
    StatementLineOut,
)
from api.deps import Services, ServicesDep
from api.liveness import LivenessUnknown
from api.problems import Problem, ProblemType, not_found, responses
from ledger.money import friend_account
from ledger.services import crew
from ledger.services.disputes import open_dispute
from ledger.services.explain import Earned, ExplanationFailed, NothingToExplain
from ledger.services.explain_log import explain_recorded
from projections.queries import PAGE_MAX
from projections.views import Balance, StatementLine

router = APIRouter(prefix="/api", tags=["balances"])


@router.get("/balances", responses=responses())
def list_balances(at: ServicesDep) -> Balances:
    return Balances(unit=crew.crew(at.ledger).unit, balances=[_balance(b) for b in at.reads.balances()])


@router.get("/balances/{account}", responses=responses(ProblemType.NOT_FOUND, ProblemType.INVALID_FIELDS))
def show_balance(
    account: Annotated[str, Path(max_length=80, pattern=r"^[a-z0-9:_-]+$", examples=["fees"])],
    at: ServicesDep,
) -> BalanceOut:
    balance = at.reads.balance(account)
    if balance is None:
        raise not_found("no transfer ever touched this account")
    return _balance(balance)


@router.get(
    "/friends/me/statement",
    responses=responses(
        ProblemType.UNAUTHENTICATED,
        ProblemType.FORBIDDEN,
        ProblemType.RATE_LIMITED,
        ProblemType.INVALID_FIELDS,
    ),
)
def statement(
    at: ServicesDep,
    token: Friend,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
    before: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,18}:[0-9]{1,9}$", description="`next` of a page")
    ] = None,
) -> Statement:
    """What was earned and paid, newest first, each line with its reason and its place in the log."""
    friend_id = token.subject_id
    if friend_id is None:
        raise Problem(ProblemType.FORBIDDEN, "this token belongs to no friend")
    cursor = None
    if before is not None:
        position, line = before.split(":")
        cursor = (int(position), int(line))
    lines = at.reads.statement(friend_id, limit, cursor)
    last = lines[-1] if len(lines) == limit else None
    return Statement(
        friend_id=friend_id,
        name=at.directory.person_name(friend_id) or "a friend",
        unit=crew.crew(at.ledger).unit,
        helping_now=helping(at, friend_id),
        estimate=estimate_of(at, friend_id),
        lines=[line_out(line) for line in lines],
        next=f"{last.position}:{last.line}" if last else None,
        **balances_of(at, friend_id),
    )


@router.get(
    "/friends/me/explain/{position}/{line}",
    responses=responses(
        ProblemType.UNAUTHENTICATED,
        ProblemType.FORBIDDEN,
        ProblemType.NOT_FOUND,
        ProblemType.RATE_LIMITED,
        ProblemType.INVALID_FIELDS,
    ),
)
def explain_line(
    position: Annotated[int, Path(ge=0, le=(1 << 53) - 1)],
    line: Annotated[int, Path(ge=0, le=65_535)],
    at: ServicesDep,
    token: Friend,
) -> ExplanationOut:
    """Why a line of the friend's own statement has its amount. Derived from the log; equal to what is recorded."""
    if token.subject_id is None:
        raise Problem(ProblemType.FORBIDDEN, "this token belongs to no friend")
    try:
        made = explain_recorded(at.ledger, position, line, friend_id=token.subject_id)
    except NothingToExplain as e:
        raise not_found("there is no such line in your statement") from e
    except ExplanationFailed as e:
        raise Problem(ProblemType.INTERNAL, f"{e}. Tell the operator, and run an audit") from e
    kind = "earned" if isinstance(made, Earned) else "moved"
    return ExplanationOut.model_validate({"kind": kind, **asdict(made)})


@router.post(
    "/friends/me/disputes",
    status_code=201,
    responses=responses(
        ProblemType.UNAUTHENTICATED,
        ProblemType.FORBIDDEN,
        ProblemType.NOT_FOUND,
        ProblemType.NOT_ALLOWED,
        ProblemType.RATE_LIMITED,
        ProblemType.INVALID_FIELDS,
    ),
)
def dispute_line(body: OpenDispute, at: ServicesDep, token: Friend) -> DisputeOut:
    """Freeze a pending line of the friend's own statement until the operator has decided."""
    if token.subject_id is None:
        raise Problem(ProblemType.FORBIDDEN, "this token belongs to no friend")
    return DisputeOut.of(
        open_dispute(
            at.ledger,
            body.position,
            body.line,
            reason=body.reason,
            friend_id=token.subject_id,
            opened_by="friend",
            at_us=at.now_us(),
        )
    )


def _balance(balance: Balance) -> BalanceOut:
    return BalanceOut(
        account=balance.account, amount_micro=balance.amount_micro, last_position=balance.last_position
    )


def balances_of(at: Services, friend_id: UUID) -> dict[str, int]:
    """What stands in each pot of a friend."""
    return {
        f"{state}_micro": _amount(at, friend_account(friend_id, state))
        for state in ("pending", "available", "in_flight", "paid")
    }


def estimate_of(at: Services, friend_id: UUID) -> EstimateOut | None:
    """What the friend has earned since the last settlement, before it is settled."""
    found = at.estimates.of(friend_id)  # first: a settlement in between makes it none, and not one too many
    return EstimateOut.of(found, after=at.reads.balance(friend_account(friend_id, "pending")))


def _amount(at: Services, account: str) -> int:
    balance = at.reads.balance(account)
    return balance.amount_micro if balance else 0


def helping(at: Services, friend_id: UUID) -> int:
    try:
        alive = at.liveness.alive(now_us=at.now_us())
    except LivenessUnknown:
        return 0
    mine = (view.node_id for view in at.reads.nodes() if view.friend_id == friend_id)
    return sum(alive[nid].viewers for nid in mine if nid in alive)


def line_out(line: StatementLine) -> StatementLineOut:
    return StatementLineOut(
        position=line.position,
        line=line.line,
        kind=line.kind,
        reason=line.reason,
        at_us=line.at_us,
        epoch=line.epoch,
        stream_id=line.stream_id,
        node_id=line.node_id,
        units=line.units,
        credited_bytes=line.credited_bytes,
        rate_micro_per_gb=line.rate_micro_per_gb,
        amount_micro=line.amount_micro,
        batch_id=line.batch_id,
        payout_line=line.payout_line,
    )
