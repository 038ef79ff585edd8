"""Errors as `application/problem+json` (RFC 9457), from a closed list.

Invariant: every answer of the API with a status of 400 or more is one of `ProblemType`, whatever raised it: an
endpoint, validation, routing, a bound, the ledger or a bug. `type` is `/problems/<slug>`, documented in docs/api.md.
Nothing a client sent is echoed but the names of its fields.
"""

from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError as SqlOperationalError
from sqlalchemy.exc import TimeoutError as SqlTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ledger.aggregates.base import DomainError
from ledger.application import Conflict, NotFound, Unavailable
from ledger.request import RequestAuthError
from ledger.services.judging import UnknownNodeError
from ledger.ticket import WireError
from projections.queries import ReadModelUnavailable

logger = structlog.get_logger()

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 2
_FIELDS_MAX: Final = 20


class ProblemType(Enum):
    """slug, status, title. A client may rely on the slug; the detail is for people."""

    MALFORMED_BODY = ("malformed-body", 400, "The body is not in the format this address takes")
    BAD_REQUEST = ("bad-request", 400, "The request cannot be read")
    UNAUTHENTICATED = ("unauthenticated", 401, "No valid token or signature")
    FORBIDDEN = ("forbidden", 403, "Not allowed for this token")
    UNKNOWN_NODE = ("unknown-node", 403, "This node's key has not joined")
    NOT_FOUND = ("not-found", 404, "There is nothing at this address")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "This address does not take that method")
    NOT_ALLOWED = ("not-allowed", 409, "The state does not allow this")
    STREAM_EXISTS = ("stream-exists", 409, "The stream exists with another owner")
    STREAM_NOT_LIVE = ("stream-not-live", 409, "The stream is not live")
    INVITE_REFUSED = ("invite-refused", 409, "The invite cannot be used")
    TOO_LARGE = ("too-large", 413, "The body is too large")
    UNSUPPORTED_MEDIA_TYPE = ("unsupported-media-type", 415, "The body has the wrong content type")
    INVALID_FIELDS = ("invalid-fields", 422, "Some fields are missing or wrong")
    RATE_LIMITED = ("rate-limited", 429, "Too many requests")
    INTERNAL = ("internal", 500, "A mistake in the hub")
    UNAVAILABLE = ("unavailable", 503, "The hub cannot answer just now")
    NOT_READY = ("not-ready", 503, "The hub is not ready")

    @property
    def slug(self) -> str:
        return self.value[0]

    @property
    def status(self) -> int:
        return self.value[1]

    @property
    def title(self) -> str:
        return self.value[2]


class Problem(HTTPException):
    """Raise it anywhere below the app. `extra` members stand beside type, title, status and detail."""

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(kind.status, detail, headers)
        self.kind = kind
        self.extra = dict(extra or {})


def render(problem: Problem) -> Response:
    body = {
        "type": f"/problems/{problem.kind.slug}",
        "title": problem.kind.title,
        "status": problem.kind.status,
        "detail": problem.detail,
        **problem.extra,
    }
    return JSONResponse(body, problem.kind.status, headers=problem.headers, media_type=MEDIA_TYPE)


def unavailable(detail: str) -> Problem:
    return Problem(ProblemType.UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def not_found(what: str) -> Problem:
    return Problem(ProblemType.NOT_FOUND, what)


_BY_STATUS: Final = {
    400: ProblemType.BAD_REQUEST,
    401: ProblemType.UNAUTHENTICATED,
    403: ProblemType.FORBIDDEN,
    404: ProblemType.NOT_FOUND,
    405: ProblemType.METHOD_NOT_ALLOWED,
    413: ProblemType.TOO_LARGE,
    415: ProblemType.UNSUPPORTED_MEDIA_TYPE,
    422: ProblemType.INVALID_FIELDS,
    429: ProblemType.RATE_LIMITED,
    503: ProblemType.UNAVAILABLE,
}


def as_problem(error: Exception) -> Problem:
    """The one place where an exception becomes an answer."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            kind = _BY_STATUS.get(error.status_code, ProblemType.BAD_REQUEST)
            return Problem(kind, error.detail or HTTPStatus(error.status_code).phrase, headers=error.headers)
        case RequestAuthError():
            return Problem(ProblemType.UNAUTHENTICATED, str(error), headers={"WWW-Authenticate": "Node"})
        case UnknownNodeError():
            return Problem(ProblemType.UNKNOWN_NODE, str(error))
        case WireError():
            return Problem(ProblemType.MALFORMED_BODY, str(error))
        case DomainError():
            return Problem(ProblemType.NOT_ALLOWED, str(error))
        case NotFound():
            return not_found("there is no such thing in the ledger")
        case Unavailable() | Conflict() | ReadModelUnavailable() | SqlOperationalError() | SqlTimeoutError():
            return unavailable("the ledger does not answer just now: try again")
        case _:
            return Problem(ProblemType.INTERNAL, "the hub made a mistake; its log has the details")


def install(app: FastAPI) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        problem = as_problem(error)
        if problem is error and problem.kind is ProblemType.INTERNAL:  # found, and said so
            logger.error(problem.detail, path=request.url.path, method=request.method)
        elif problem.kind is ProblemType.INTERNAL:
            logger.error("request failed", path=request.url.path, method=request.method, exc_info=error)
        elif problem.kind is ProblemType.UNAVAILABLE:
            logger.warning("ledger unavailable", path=request.url.path, error=str(error))
        return render(problem)

    handled: tuple[type[Exception], ...] = (
        HTTPException,
        RequestValidationError,
        RequestAuthError,
        WireError,
        DomainError,
        NotFound,
        Unavailable,
        Conflict,
        ReadModelUnavailable,
        SqlOperationalError,
        SqlTimeoutError,
        Exception,
    )
    for kind in handled:
        app.add_exception_handler(kind, handle)


def _invalid(error: RequestValidationError) -> Problem:
    fields = [
        {"field": ".".join(str(part) for part in e["loc"]), "reason": str(e["msg"])}
        for e in error.errors()[:_FIELDS_MAX]
    ]
    names = ", ".join(str(f["field"]) for f in fields)
    return Problem(ProblemType.INVALID_FIELDS, f"wrong or missing: {names}", extra={"fields": fields})


def responses(*kinds: ProblemType) -> dict[int | str, dict[str, Any]]:
    """For the `responses` of an endpoint: what it may answer besides success, in OpenAPI."""
    by_status: dict[int | str, list[str]] = {}
    for kind in (*kinds, ProblemType.BAD_REQUEST, ProblemType.TOO_LARGE, ProblemType.UNAVAILABLE):
        by_status.setdefault(kind.status, []).append(kind.title)
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": "; ".join(titles), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status, titles in by_status.items()
    }
