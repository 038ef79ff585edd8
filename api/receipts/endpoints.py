"""Receipts: batches from nodes, single ones from viewers. The answer is given after the verdict is durable."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from api.deps import ServicesDep, body_up_to, limited, per_ip
from api.metrics import Metrics
from api.problems import ProblemType, responses
from api.receipts.schemas import VerdictOut, Verdicts
from ledger import batch, receipt
from ledger.services.judging import ReceiptAnswer

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
    response_model=Verdicts,
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
) -> Response:
    """A verdict on every receipt. The same batch again gets the same verdicts and changes nothing."""
    answers = at.desk.judge_batch(
        data, at_us=at.now_us(), admit=lambda key: limited("batches_per_node", key.hex(), at)
    )
    return _json({"verdicts": _counted(answers, request)})


@router.post(
    "",
    response_model=VerdictOut,
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
) -> Response:
    """From the viewer itself: once a minute, when its node does not answer, and when the page closes."""
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
