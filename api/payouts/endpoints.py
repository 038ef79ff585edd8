"""Payouts: plan, approve, cancel, show. Money is moved by `streamrp2p payout run` alone, never over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query

from api.auth import Operator
from api.deps import ServicesDep
from api.directory import TOKEN_NAME_CHARS, Token
from api.payouts.schemas import (
    CancelPayout,
    Decided,
    PayoutLineOut,
    PayoutOut,
    PayoutPlan,
    Payouts,
    PlannedLine,
    PlanPayout,
    WaitingAmount,
)
from api.problems import Problem, ProblemType, not_found, responses
from ledger.rails.csv_file import FileChangedError
from ledger.rails.pain001 import CENT_MICRO, NAME
from ledger.services import crew
from ledger.services import payouts as commands
from ledger.services.payment_files import OtherFilesError
from ledger.services.returns import LostReturns
from projections.queries import PAGE_MAX
from projections.views import PayoutView

router = APIRouter(prefix="/api/payouts", tags=["payouts"])

_AUTH = (
    ProblemType.UNAUTHENTICATED,
    ProblemType.FORBIDDEN,
    ProblemType.RATE_LIMITED,
    ProblemType.INVALID_FIELDS,
)
_DECIDE = responses(*_AUTH, ProblemType.NOT_FOUND, ProblemType.NOT_ALLOWED)


@router.post("", status_code=201, responses=responses(*_AUTH, ProblemType.NOT_ALLOWED))
def plan_payout(body: PlanPayout, at: ServicesDep, token: Operator) -> PayoutPlan:
    """Everybody with enough available and a destination. Nothing is reserved yet; what is left out waits, with why."""
    threshold_micro = body.threshold_micro or crew.settings(at.ledger).payout_threshold_micro
    with _files_read("plan"):
        plan = commands.plan(
            at.ledger,
            rail=body.rail,
            threshold_micro=threshold_micro,
            destinations=at.directory.destination_commitments(),
            at_us=at.now_us(),
            operator=_named(token),
            quantum_micro=CENT_MICRO if body.rail == NAME else 1,
            remembered=at.returned(),
            dry_run=body.dry_run,
        )
    return PayoutPlan(
        batch_id=plan.batch_id,
        total_micro=sum(line.amount_micro for line in plan.lines),
        lines=[
            PlannedLine(line=line.line, friend_id=line.friend_id, amount_micro=line.amount_micro)
            for line in plan.lines
        ],
        waiting=[
            WaitingAmount(friend_id=w.friend_id, amount_micro=w.amount_micro, reason=w.reason)
            for w in plan.waiting
        ],
        further=[p.batch_id for p in plan.further if p.batch_id],
    )


def _named(token: Token) -> str:
    """Who decided enters the log: the token by its hash, no name."""
    return f"token:{token.sha256.hex()[:TOKEN_NAME_CHARS]}"


@router.post("/{batch_id}/approve", responses=_DECIDE)
def approve_payout(batch_id: UUID, at: ServicesDep, token: Operator) -> Decided:
    payout = commands.approve(at.ledger, batch_id, operator=_named(token), at_us=at.now_us())
    return Decided(batch_id=batch_id, state=payout.state)


@router.post("/{batch_id}/cancel", responses=_DECIDE)
def cancel_payout(batch_id: UUID, body: CancelPayout, at: ServicesDep, _: Operator) -> Decided:
    """Only before the first attempt."""
    with _files_read("cancel"):
        given = at.given()
        payout = commands.cancel(at.ledger, batch_id, reason=body.reason, at_us=at.now_us(), given=given)
    return Decided(batch_id=batch_id, state=payout.state)


@contextmanager
def _files_read(command: str) -> Iterator[None]:
    """What the payment files know and the ledger does not is for whoever restored the database to look at."""
    try:
        yield
    except (commands.LostPayments, LostReturns, FileChangedError, OtherFilesError) as e:
        raise Problem(ProblemType.NOT_ALLOWED, str(e)) from e
    except OSError as e:  # of another account
        told = f"the payment files cannot be read here: streamrp2p payout {command}"
        raise Problem(ProblemType.NOT_ALLOWED, told) from e


@router.get("", responses=responses(*_AUTH))
def list_payouts(
    at: ServicesDep, _: Operator, limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100
) -> Payouts:
    return Payouts(unit=crew.crew(at.ledger).unit, payouts=[_out(view) for view in at.reads.payouts(limit)])


@router.get("/{batch_id}", responses=responses(*_AUTH, ProblemType.NOT_FOUND))
def show_payout(batch_id: UUID, at: ServicesDep, _: Operator) -> PayoutOut:
    view = at.reads.payout(batch_id)
    if view is None:
        raise not_found("there is no such payout")
    return _out(view)


def _next(view: PayoutView) -> Literal["approve", "run", "reconcile", ""]:
    if view.state == "planned":
        return "approve"
    if view.state != "approved":
        return ""
    # What a list is paid from is known at once; of what was given to a bank or a chain, that has to be asked.
    return "run" if view.waiting_lines or view.rail == "csv" else "reconcile"


def _out(view: PayoutView) -> PayoutOut:
    return PayoutOut(
        batch_id=view.batch_id,
        number=view.number,
        next=_next(view),
        rail=view.rail,
        state=view.state,
        planned_us=view.planned_us,
        planned_by=view.planned_by,
        decided_us=view.decided_us,
        decided_by=view.decided_by,
        reason=view.reason,
        total_micro=view.total_micro,
        confirmed_micro=view.confirmed_micro,
        failed_micro=view.failed_micro,
        returned_micro=view.returned_micro,
        line_count=view.line_count,
        lines=[
            PayoutLineOut(
                line=line.line,
                friend_id=line.friend_id,
                amount_micro=line.amount_micro,
                state=line.state,
                attempts=line.attempts,
                outcome=line.outcome,
                reference=line.reference,
                returned_micro=line.returned_micro,
            )
            for line in view.lines
        ],
    )
