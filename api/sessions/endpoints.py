"""Sessions of viewers that sign receipts (class 1). Plain players get theirs with the playlist."""

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool

from api.auth import Account
from api.deps import PeerIp, ServicesDep, per_ip
from api.problems import Problem, ProblemType, not_found, responses
from api.sessions.schemas import OpenSession, SessionOpened
from ledger.aggregates.stream import StreamState
from ledger.services.streams import load_stream

router = APIRouter(prefix="/api/sessions", tags=["sessions"])


@router.post(
    "",
    status_code=201,
    dependencies=[Depends(per_ip("sessions_per_ip"))],
    responses=responses(
        ProblemType.NOT_FOUND,
        ProblemType.STREAM_NOT_LIVE,
        ProblemType.RATE_LIMITED,
        ProblemType.INVALID_FIELDS,
    ),
)
async def open_session(body: OpenSession, at: ServicesDep, ip: PeerIp, account: Account) -> SessionOpened:
    """A playlist of the viewer's own, whose segment URLs carry tickets for this key.

    A friend who watches sends their token: nobody is paid for carrying a stream to themselves.
    """
    stream = await run_in_threadpool(load_stream, at.ledger, body.stream)
    if stream is None:
        raise not_found("there is no stream of this name")
    if stream.state is not StreamState.LIVE:
        raise Problem(ProblemType.STREAM_NOT_LIVE, "the stream is not live now: ask again")
    session_id = await at.open_signing_session(body.stream, bytes.fromhex(body.viewer_key), ip, account)
    if session_id is None:
        raise not_found("there is no stream of this name")
    playlist_url = f"{at.settings.public_url}/live/{body.stream}/{session_id}/index.m3u8"
    return SessionOpened(session_id=session_id, playlist_url=playlist_url)
