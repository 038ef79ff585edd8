"""Invites, joining, heartbeats, and who carries the crew's streams. No address of a node is ever shown."""

from collections.abc import Callable
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Response

from api.auth import NodeKey, Operator
from api.balances.endpoints import balances_of, estimate_of
from api.deps import PeerIp, Services, ServicesDep, per_ip
from api.directory import NodeProfile
from api.liveness import HEARTBEAT_S, LivenessUnknown, Pulse
from api.newcomers import invite_friend
from api.nodes.addresses import literal_address, node_address
from api.nodes.schemas import (
    ChangeStanding,
    CreateInvite,
    Earned,
    Heartbeat,
    HeartbeatAnswer,
    InviteCreated,
    JoinNode,
    NodeJoined,
    NodeOut,
    Nodes,
    Standing,
)
from api.problems import Problem, ProblemType, not_found, responses
from ledger.aggregates.base import DomainError
from ledger.aggregates.node import Node, NodeStatus
from ledger.application import NotFound
from ledger.ids import node_id
from ledger.services import crew
from ledger.services import nodes as commands
from projections.views import NodeView

router = APIRouter(prefix="/api", tags=["nodes"])


@router.post(
    "/invites",
    status_code=201,
    responses=responses(
        ProblemType.UNAUTHENTICATED,
        ProblemType.FORBIDDEN,
        ProblemType.RATE_LIMITED,
        ProblemType.INVALID_FIELDS,
    ),
)
def create_invite(body: CreateInvite, at: ServicesDep, _: Operator) -> InviteCreated:
    """A new friend, with a code that lets one node join."""
    base = at.settings.public_url
    new = invite_friend(at.ledger, at.directory, body.friend_name, at_us=at.now_us())
    return InviteCreated(
        code=new.code,
        friend_id=new.friend_id,
        friend_token=new.token,
        friend_url=f"{base}/friend#{new.token}",
        command=f"streamrp2p node run {base} {new.code}",
        expires_us=new.expires_us,
    )


@router.post(
    "/nodes",
    status_code=201,
    dependencies=[Depends(per_ip("joins_per_ip"))],
    responses=responses(
        ProblemType.UNAUTHENTICATED,
        ProblemType.INVITE_REFUSED,
        ProblemType.RATE_LIMITED,
        ProblemType.INVALID_FIELDS,
    ),
)
def join(body: JoinNode, response: Response, at: ServicesDep, key: NodeKey, ip: PeerIp) -> NodeJoined:
    """Join with the key that signed the request. The same key again: 200 and the same answer."""
    now_us = at.now_us()
    nid = node_id(key)
    url = node_address(body.url, ip, body.port)
    try:
        node, new = commands.join_node(
            at.ledger,
            code=body.invite_code,
            public_key=key,
            prefix_commitment=at.commit_network(ip, nid.bytes),
            at_us=now_us,
        )
    except DomainError as e:
        raise Problem(ProblemType.INVITE_REFUSED, str(e)) from e
    at.directory.save_profile(NodeProfile(nid, body.name, url), at_us=now_us)
    if not new:
        response.status_code = 200
    return NodeJoined(
        node_id=nid, friend_id=node.friend_id, ticket_keys=_ticket_keys(at), heartbeat_s=HEARTBEAT_S
    )


@router.post(
    "/nodes/me/heartbeat",
    responses=responses(
        ProblemType.UNAUTHENTICATED,
        ProblemType.UNKNOWN_NODE,
        ProblemType.RATE_LIMITED,
        ProblemType.INVALID_FIELDS,
    ),
)
def heartbeat(body: Heartbeat, at: ServicesDep, key: NodeKey, ip: PeerIp) -> HeartbeatAnswer:
    """The node is alive for the next 15 s. A suspended node may go on sending, it is given no viewers."""
    nid = node_id(key)
    try:
        node = at.ledger.load(Node, nid)
    except NotFound as e:
        raise Problem(ProblemType.UNKNOWN_NODE, "this key has not joined: use an invite code") from e
    now_us = at.now_us()
    url = node_address(body.url, ip, body.port)
    # Where it comes from, and where it says viewers reach it: often IPv4 there and IPv6 here.
    for address in {ip, literal_address(url) or ip}:
        network = at.commit_network(address, nid.bytes)
        node = commands.see_at(at.ledger, node, network, at_us=now_us)
    if node.status is NodeStatus.ACTIVE:
        known = at.liveness.last(nid)
        if known is None or known.url != url:
            at.directory.move_node(nid, url, at_us=now_us)
        at.liveness.beat(Pulse(nid, url, body.viewers, body.uploaded_bytes, now_us))
        node = at.ledger.load(Node, nid)  # suspended just now, it would have viewers until the next heartbeat
    if node.status is not NodeStatus.ACTIVE:
        at.liveness.forget(nid)
        at.node_left(nid)
    return HeartbeatAnswer(
        status=node.status.value,
        reason=node.status_reason,
        ticket_keys=_ticket_keys(at),
        earned=_earned(at, node.friend_id),
    )


@router.delete(
    "/nodes/me/heartbeat",
    status_code=204,
    responses=responses(ProblemType.UNAUTHENTICATED, ProblemType.RATE_LIMITED),
)
def goodbye(at: ServicesDep, key: NodeKey) -> None:
    """The node goes away, or to sleep: no more viewers from this moment, until its next heartbeat."""
    nid = node_id(key)
    at.liveness.forget(nid)
    at.node_left(nid)


@router.get("/nodes", responses=responses())
def list_nodes(at: ServicesDep) -> Nodes:
    views = at.reads.nodes()
    names = at.directory.node_names(v.node_id for v in views)
    viewers = _viewers(at)
    return Nodes(nodes=[_out(v, names, viewers) for v in views])


@router.get("/nodes/{nid}", responses=responses(ProblemType.NOT_FOUND, ProblemType.INVALID_FIELDS))
def show_node(nid: UUID, at: ServicesDep) -> NodeOut:
    view = at.reads.node(nid)
    if view is None:
        raise not_found("there is no such node")
    return _out(view, at.directory.node_names([nid]), _viewers(at))


_STANDING = responses(
    ProblemType.UNAUTHENTICATED,
    ProblemType.FORBIDDEN,
    ProblemType.NOT_FOUND,
    ProblemType.NOT_ALLOWED,
    ProblemType.RATE_LIMITED,
    ProblemType.INVALID_FIELDS,
)


@router.post("/nodes/{nid}/suspend", responses=_STANDING)
def suspend(nid: UUID, body: ChangeStanding, at: ServicesDep, _: Operator) -> Standing:
    """No more viewers from this moment, until it is reinstated. Suspending again keeps the first reason."""
    return _stopped(at, commands.suspend, nid, body.reason)


@router.post("/nodes/{nid}/reinstate", responses=_STANDING)
def reinstate(nid: UUID, body: ChangeStanding, at: ServicesDep, _: Operator) -> Standing:
    """Viewers again, from its next heartbeat on."""
    return _standing(_changed(at, commands.reinstate, nid, body.reason))


@router.post("/nodes/{nid}/retire", responses=_STANDING)
def retire(nid: UUID, body: ChangeStanding, at: ServicesDep, _: Operator) -> Standing:
    """For good: this node's key never comes back. What it earned stays."""
    return _stopped(at, commands.retire, nid, body.reason)


Change = Callable[..., Node]


def _stopped(at: Services, change: Change, nid: UUID, reason: str) -> Standing:
    node = _changed(at, change, nid, reason)
    at.liveness.forget(nid)
    at.node_left(nid)
    return _standing(node)


def _changed(at: Services, change: Change, nid: UUID, reason: str) -> Node:
    try:
        return change(at.ledger, nid, reason=reason, at_us=at.now_us())
    except NotFound as e:
        raise not_found("there is no such node") from e


def _standing(node: Node) -> Standing:
    return Standing(node_id=node.id, status=node.status.value, reason=node.status_reason)


Viewers = Annotated[dict[UUID, int], "by node"]


def _viewers(at: Services) -> Viewers:
    try:
        return {nid: pulse.viewers for nid, pulse in at.liveness.alive(now_us=at.now_us()).items()}
    except LivenessUnknown:
        return {}


def _out(view: NodeView, names: dict[UUID, str], viewers: Viewers) -> NodeOut:
    return NodeOut(
        node_id=view.node_id,
        friend_id=view.friend_id,
        name=names.get(view.node_id, "a friend"),
        state=view.state,
        state_reason=view.state_reason,
        health=view.health,
        viewers=viewers.get(view.node_id, 0),
        joined_us=view.joined_us,
        last_seen_us=view.last_seen_us,
        probes_ok=view.probes_ok,
        probes_bad=view.probes_bad,
        receipts_accepted=view.receipts_accepted,
        receipts_refused=view.receipts_refused,
        verdicts=dict(view.verdicts),
        caps=dict(view.caps),
        credited_units=view.credited_units,
        credited_bytes=view.credited_bytes,
    )


def _ticket_keys(at: Services) -> list[str]:
    return [k.public_key.hex() for k in crew.crew(at.ledger).public_keys("ticket") if not k.retired]


def _earned(at: Services, friend_id: UUID) -> Earned:
    estimate = estimate_of(at, friend_id)
    return Earned(
        unit=crew.crew(at.ledger).unit,
        estimate_micro=estimate.amount_micro if estimate else None,
        **balances_of(at, friend_id),
    )
