"""Who is asking: Bearer tokens of operators, creators and friends, and nodes that sign their requests.

Invariant: a token is compared by its SHA-256 only, an unknown, revoked or malformed one gets the same answer, and a
node's signature covers method, target, time and body.
"""

from collections.abc import Callable
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.deps import Services, ServicesDep, limited, peer_ip
from api.directory import Role, Token
from api.problems import Problem, ProblemType
from ledger.request import RequestAuthError, verify_request

_bearer = HTTPBearer(auto_error=False, description="`sp2p_<role>_...`", scheme_name="token")


def token_of(*roles: Role) -> Callable[[Services, HTTPAuthorizationCredentials | None], Token]:
    """A dependency: the token that came with the request, of one of these roles. Counted per token."""

    def check(
        at: ServicesDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Token:
        token = at.directory.token(credentials.credentials, now_us=at.now_us()) if credentials else None
        if token is None:
            detail = f"send a token of the role {' or '.join(roles)}: Authorization: Bearer sp2p_..."
            raise Problem(ProblemType.UNAUTHENTICATED, detail, headers={"WWW-Authenticate": "Bearer"})
        limited("requests_per_token", token.sha256.hex(), at)
        if token.role not in roles:
            raise Problem(ProblemType.FORBIDDEN, f"this needs the role {' or '.join(roles)}")
        return token

    return check


def account(
    at: ServicesDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> UUID | None:
    """The friend or creator whose token came with a request that needs none. A token that is no good is nobody's."""
    token = at.directory.token(credentials.credentials, now_us=at.now_us()) if credentials else None
    return token.subject_id if token is not None else None


async def _raw_body(request: Request) -> bytes:
    return await request.body()


def node_key(request: Request, body: Annotated[bytes, Depends(_raw_body)], at: ServicesDep) -> bytes:
    """The 32-byte public key that signed this request. It need not have joined. Counted per key."""
    query = request.scope["query_string"]
    target = request.scope["raw_path"].split(b"?")[0] + (b"?" + query if query else b"")
    header = request.headers.get("authorization")
    key = verify_request(
        header, request.method, target.decode("latin-1"), body, now_s=at.now_us() // 1_000_000
    )
    limited("requests_per_node", key.hex(), at)
    if at.replays.is_replayed(header or "", peer_ip(request)):
        raise RequestAuthError("this request came from another address before")
    return key


Operator = Annotated[Token, Depends(token_of(Role.OPERATOR))]
OperatorOrCreator = Annotated[Token, Depends(token_of(Role.OPERATOR, Role.CREATOR))]
Creator = Annotated[Token, Depends(token_of(Role.CREATOR))]
Friend = Annotated[Token, Depends(token_of(Role.FRIEND))]
Account = Annotated[UUID | None, Depends(account)]
NodeKey = Annotated[bytes, Depends(node_key)]
