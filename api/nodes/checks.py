"""What a friend's `doctor` asks: can viewers reach my node, and how fast is my line?

Invariant: the hub connects only where a heartbeat could have sent viewers, asks only for /health, and says no more
than whether that very node answered. Bodies of the upload test are counted and dropped.
"""

import asyncio
import ipaddress
import socket
import ssl
import time
from typing import Annotated, Final
from urllib.parse import urlsplit
from uuid import UUID

import httpx2
import msgspec
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from api.auth import NodeKey
from api.deps import PeerIp, ServicesDep, limited
from api.nodes.addresses import is_near, node_address
from api.nodes.schemas import NodeUrl
from api.problems import Problem, ProblemType, responses
from api.text import Port
from ledger.aggregates.node import Node
from ledger.application import NotFound
from ledger.ids import node_id

router = APIRouter(prefix="/api/nodes/me", tags=["nodes"])

UPLOAD_PATH: Final = "/api/nodes/me/upload"
UPLOAD_BYTES_MAX: Final = 2 * 1024 * 1024
ANSWER_S: Final = 4.0
ANSWER_BYTES_MAX: Final = 65_536


class Check(BaseModel):
    url: NodeUrl | None = Field(None, description="as in the heartbeat")
    port: Port


class Checked(BaseModel):
    url: str = Field(description="where the hub looked")
    reachable: bool
    why: str = Field(description="empty when it is reachable")
    took_ms: int


class Uploaded(BaseModel):
    received_bytes: int


class _Health(msgspec.Struct):
    node_id: str = ""


def member(at: ServicesDep, key: NodeKey) -> UUID:
    """A node that joined, counted: these requests cost more than others."""
    nid = node_id(key)
    limited("checks_per_node", key.hex(), at)
    try:
        at.ledger.load(Node, nid)
    except NotFound as e:
        raise Problem(ProblemType.UNKNOWN_NODE, "this key has not joined: use an invite code") from e
    return nid


Member = Annotated[UUID, Depends(member)]
_PROBLEMS = responses(
    ProblemType.UNAUTHENTICATED,
    ProblemType.UNKNOWN_NODE,
    ProblemType.RATE_LIMITED,
    ProblemType.INVALID_FIELDS,
)


@router.post("/check", responses=_PROBLEMS)
async def check(body: Check, at: ServicesDep, nid: Member, ip: PeerIp) -> Checked:  # noqa: ARG001
    """Whether this hub reaches the node where its viewers would look for it."""
    url = node_address(body.url, ip, body.port)
    began = time.monotonic()
    why = await _why_not(url, nid, peer_is_near=is_near(ip))
    return Checked(url=url, reachable=not why, why=why, took_ms=round((time.monotonic() - began) * 1000))


@router.post(
    "/upload",
    responses=_PROBLEMS | responses(ProblemType.TOO_LARGE),
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "any bytes",
            "content": {
                "application/octet-stream": {
                    "schema": {"type": "string", "format": "binary", "maxLength": UPLOAD_BYTES_MAX}
                }
            },
        }
    },
)
async def upload(request: Request, nid: Member) -> Uploaded:  # noqa: ARG001
    """Take the bytes and forget them: the node takes the time."""
    return Uploaded(received_bytes=len(await request.body()))


async def _why_not(url: str, nid: UUID, *, peer_is_near: bool) -> str:
    if not peer_is_near and not await _is_public(urlsplit(url).hostname or ""):
        return "its name does not lead to an address of the internet"
    try:
        async with asyncio.timeout(ANSWER_S), httpx2.AsyncClient(trust_env=False, timeout=ANSWER_S) as http:
            said = await _health(http, url)
    except TimeoutError:
        return f"no answer within {ANSWER_S:.0f} s: is the port forwarded?"
    except ssl.SSLError:
        return "its certificate is not for this name, or has expired"
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as e:
        return _in_words(e)
    return "" if said == str(nid) else "something else answers there, not this node"


async def _health(http: httpx2.AsyncClient, url: str) -> str:
    """The node id that is told there; empty when it is none."""
    data = b""
    async with http.stream("GET", f"{url}/health") as answer:
        async for part in answer.aiter_raw():
            data += part
            if len(data) > ANSWER_BYTES_MAX:
                return ""
    try:
        return msgspec.json.decode(data, type=_Health).node_id
    except msgspec.MsgspecError:
        return ""


def _in_words(error: Exception) -> str:
    if "CERTIFICATE" in str(error).upper():
        return "its certificate is not for this name, or has expired"
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer within {ANSWER_S:.0f} s: is the port forwarded?"
    return "nothing takes connections there: is the port forwarded, and the node running?"


async def _is_public(host: str) -> bool:
    """True when every address of the name is one of the internet."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found)
