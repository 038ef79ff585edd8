"""Who the friends are, and a new link for one who lost theirs. For the operator: names are nobody else's business."""

from uuid import UUID

from fastapi import APIRouter

from api.auth import Operator
from api.deps import ServicesDep
from api.friends.schemas import FriendOut, Friends, FriendToken
from api.newcomers import new_friend_token
from api.problems import ProblemType, not_found, responses

router = APIRouter(prefix="/api/friends", tags=["friends"])

_AUTH = (ProblemType.UNAUTHENTICATED, ProblemType.FORBIDDEN, ProblemType.RATE_LIMITED)


@router.get("", responses=responses(*_AUTH))
def list_friends(at: ServicesDep, _: Operator) -> Friends:
    """Everybody who was ever invited, by name."""
    nodes: dict[UUID, list[UUID]] = {}
    for view in at.reads.nodes():
        nodes.setdefault(view.friend_id, []).append(view.node_id)
    friends = at.directory.friends().items()
    return Friends(
        friends=[FriendOut(friend_id=one, name=name, node_ids=nodes.get(one, [])) for one, name in friends]
    )


@router.post(
    "/{friend_id}/token",
    status_code=201,
    responses=responses(*_AUTH, ProblemType.NOT_FOUND, ProblemType.INVALID_FIELDS),
)
def new_token(friend_id: UUID, at: ServicesDep, _: Operator) -> FriendToken:
    """A new link to the friend's page; the old ones stop working. Balances and nodes stay as they are."""
    if friend_id not in at.directory.friends():
        raise not_found("there is no such friend")
    token = new_friend_token(at.directory, friend_id, at_us=at.now_us())
    url = f"{at.settings.public_url}/friend#{token}"
    return FriendToken(friend_id=friend_id, friend_token=token, friend_url=url)
