"""Receipts: batches from nodes, single ones from viewers. The answer is given after the verdict is durable."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from api.deps import ServicesDep, body_up_to, limited, per_ip
from api.metrics import Metrics
from api.problems import ProblemType, responses
from api.receipts.schemas import VerdictOut, Verdicts
from ledger import batch, receipt
from ledger.services.delivery import ReceiptAnswer

router = APIRouter(prefix="/api/receipts", tags=["receipts"])


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
    dependencies=[Depends(per_ip("batches_per_ip"))],
    openapi_extra=_octets("a signed batch (docs/protocol.md)", batch.MAX_BYTES),
    responses=responses(
        ProblemType.MALFORMED_BODY,
        ProblemType.UNKNOWN_NODE,
        ProblemType.NOT_ALLOWED,
        ProblemType.RATE_LIMITED,
    ),
)
def judge_batch(
    data: Annotated[bytes, Depends(body_up_to(batch.MAX_BYTES))], request: Request, at: ServicesDep
) -> Verdicts:
    """A verdict on every receipt. The same batch again gets the same verdicts and changes nothing."""
    answers = at.desk.judge_batch(
        data, at_us=at.now_us(), admit=lambda key: limited("batches_per_node", key.hex(), at)
    )
    return Verdicts(verdicts=[_out(a, request) for a in answers])


@router.post(
    "",
    dependencies=[Depends(per_ip("receipts_per_ip"))],
    openapi_extra=_octets("one signed receipt (docs/protocol.md)", receipt.SIGNED_BYTES),
    responses=responses(
        ProblemType.MALFORMED_BODY,
        ProblemType.UNKNOWN_NODE,
        ProblemType.NOT_ALLOWED,
        ProblemType.RATE_LIMITED,
    ),
)
def judge_receipt(
    data: Annotated[bytes, Depends(body_up_to(receipt.SIGNED_BYTES))], request: Request, at: ServicesDep
) -> VerdictOut:
    """From the viewer itself: once a minute, when its node does not answer, and when the page closes."""
    return _out(at.desk.judge_receipt(data, at_us=at.now_us()), request)


def _out(answer: ReceiptAnswer, request: Request) -> VerdictOut:
    metrics: Metrics = request.app.state.metrics
    metrics.receipt(answer.verdict)
    return VerdictOut(
        index=answer.index,
        verdict=answer.verdict,
        units=answer.units,
        bytes=answer.credited_bytes,
        cap=answer.cap,
        position=answer.position,
    )
