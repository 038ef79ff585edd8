"""Receipts: batches from nodes, single ones from viewers. The answer is given after the verdict is durable.

These are the hub's most frequent requests, so they pass by FastAPI's dependencies: the body is read here, and one
thread of the pool does all the rest. Resolved one by one, dependencies cost as much as half of judging a batch.
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from api.deps import body_up_to, counted_as, limited, peer_ip, services
from api.metrics import Metrics
from api.problems import ProblemType, responses
from api.receipts.schemas import VerdictOut, Verdicts
from ledger import batch, receipt
from ledger.services.judging import ReceiptAnswer


class PlainRoute(APIRoute):
    """Its endpoint is given the request, and answers it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


router = APIRouter(prefix="/api/receipts", tags=["receipts"], route_class=PlainRoute)
_read_batch: Final = body_up_to(batch.MAX_BYTES)
_read_receipt: Final = body_up_to(receipt.SIGNED_BYTES)


def _octets(what: str, limit: int) -> dict[str, Any]:
    schema = {"type": "string", "format": "binary", "maxLength": limit}
    return {
        "requestBody": {
            "required": True,
            "description": what,
            "content": {"application/octet-stream": {"schema": schema}},
        }
    }


@router.post(
    "/batches",
    response_model=Verdicts,
    openapi_extra=_octets("a signed batch (docs/protocol.md)", batch.MAX_BYTES),
    responses=responses(
        ProblemType.MALFORMED_BODY,
        ProblemType.UNKNOWN_NODE,
        ProblemType.NOT_ALLOWED,
        ProblemType.RATE_LIMITED,
    ),
)
async def judge_batch(request: Request) -> Response:
    """A verdict on every receipt. The same batch again gets the same verdicts and changes nothing."""
    return await run_in_threadpool(_judge_batch, request, await _read_batch(request))


@router.post(
    "",
    response_model=VerdictOut,
    openapi_extra=_octets("one signed receipt (docs/protocol.md)", receipt.SIGNED_BYTES),
    responses=responses(
        ProblemType.MALFORMED_BODY,
        ProblemType.UNKNOWN_NODE,
        ProblemType.NOT_ALLOWED,
        ProblemType.RATE_LIMITED,
    ),
)
async def judge_receipt(request: Request) -> Response:
    """From the viewer itself: once a minute, when its node does not answer, and when the page closes."""
    return await run_in_threadpool(_judge_receipt, request, await _read_receipt(request))


def _judge_batch(request: Request, data: bytes) -> Response:
    at = services(request)
    limited("batches_per_ip", counted_as(peer_ip(request)), at)
    answers = at.desk.judge_batch(
        data, at_us=at.now_us(), admit=lambda key: limited("batches_per_node", key.hex(), at)
    )
    return _json({"verdicts": _counted(answers, request)})


def _judge_receipt(request: Request, data: bytes) -> Response:
    at = services(request)
    limited("receipts_per_ip", counted_as(peer_ip(request)), at)
    return _json(_counted([at.desk.judge_receipt(data, at_us=at.now_us())], request)[0])


_encoder: Final = msgspec.json.Encoder()


def _counted(answers: Sequence[ReceiptAnswer], request: Request) -> Sequence[ReceiptAnswer]:
    """As `VerdictOut` has it. Through its model a batch of 200 would take longer to write than to judge."""
    metrics: Metrics = request.app.state.metrics
    for verdict, count in Counter([a.verdict for a in answers]).items():
        metrics.receipts(verdict, count)
    return answers


def _json(content: Any) -> Response:
    return Response(_encoder.encode(content), media_type="application/json")
