"""Liveness, readiness, metrics and the hub's public keys."""

from fastapi import APIRouter, Request, Response

from api import metrics
from api.auth import Operator
from api.deps import Services, ServicesDep
from api.health.schemas import Health, KeyOut, Keys, ProjectionLag, Readiness, Status, WorkerDuty
from api.problems import Problem, ProblemType, responses
from ledger.application import Unavailable
from ledger.services import crew
from projections.queries import ReadModelUnavailable

router = APIRouter(tags=["health"])

_OK = "ok"
_NEVER_S = 10 * 365 * 86_400  # overdue for longer: nothing was ever promised


@router.get("/api/health", responses=responses())
async def health() -> Health:
    """The process answers. Touches nothing else, so a slow database does not get it restarted."""
    return Health()


@router.get("/api/ready", responses=responses(ProblemType.NOT_READY))
def ready(at: ServicesDep) -> Readiness:
    """Whether to send people here. Valkey is reported but not required: it never holds truth."""
    checks = {
        "postgres": _postgres(at),
        "projections": _projections(at),
        "rtmp": _OK if at.ingest_ready() else "not listening",
        "duties": _duties(at),
        "valkey": _OK if at.liveness.reachable() else "away: limits and liveness are kept in memory",
    }
    failed = [name for name, state in checks.items() if state != _OK and name != "valkey"]
    if failed:
        detail = f"not ready: {', '.join(failed)}"
        raise Problem(ProblemType.NOT_READY, detail, headers={"Retry-After": "5"}, extra={"checks": checks})
    return Readiness(ready=True, checks=checks)


@router.get(
    "/api/status",
    responses=responses(ProblemType.UNAUTHENTICATED, ProblemType.FORBIDDEN, ProblemType.RATE_LIMITED),
)
def status(at: ServicesDep, _: Operator) -> Status:
    failing = at.troubles()
    return Status(
        log_events=at.ledger.size(),
        projections=[
            ProjectionLag(
                name=lag.name,
                position=lag.position,
                events=lag.events,
                behind_us=lag.behind_us,
                stopped=lag.stopped,
            )
            for lag in at.reads.lag(at.ledger, now_us=at.now_us())
        ],
        duties=[
            WorkerDuty(name=name, failing=name in failing, overdue_s=seconds)
            for name, seconds in at.overdue().items()
        ],
    )


@router.get("/metrics", include_in_schema=False)
def prometheus(request: Request, at: ServicesDep) -> Response:
    """Answers without the lag while the database is away: the request metrics matter most then."""
    collected: metrics.Metrics = request.app.state.metrics
    try:
        lags, size = at.reads.lag(at.ledger, now_us=at.now_us()), at.ledger.size()
    except (Unavailable, ReadModelUnavailable):
        lags, size = [], None
    return Response(
        collected.exposition(lags, size, overdue=at.overdue(), failing=at.troubles()),
        media_type=metrics.CONTENT_TYPE,
    )


@router.get("/api/keys", tags=["audit"], responses=responses(ProblemType.NOT_FOUND))
def keys(at: ServicesDep) -> Keys:
    found = crew.crew(at.ledger)

    def shown(purpose: str) -> list[KeyOut]:
        return [
            KeyOut(key_id=k.key_id.hex(), public_key=k.public_key.hex(), retired=k.retired)
            for k in found.public_keys(purpose)
        ]

    return Keys(ticket=shown("ticket"), log=shown("log"))


def _postgres(at: Services) -> str:
    try:
        at.ledger.size()
    except Unavailable:
        return "does not answer"
    return _OK


def _duties(at: Services) -> str:
    wrong = [f"{duty} failing" for duty in at.troubles()]
    wrong += [_silent(duty, seconds) for duty, seconds in at.overdue().items() if seconds]
    return f"{', '.join(wrong)}: see the hub's log" if wrong else _OK


def _silent(duty: str, seconds: int) -> str:
    return f"{duty} silent for {seconds} s" if seconds < _NEVER_S else f"{duty} not begun"


def _projections(at: Services) -> str:
    try:
        lags, size = at.reads.lag(at.ledger, now_us=at.now_us()), at.ledger.size()
    except (Unavailable, ReadModelUnavailable):
        return "cannot be read"
    return at.levels.missing(lags, size) or _OK
