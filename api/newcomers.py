"""A new friend, a new stream: made in one way, whether the API, a command or the first run does it.

Invariant: what is secret is returned once, to be shown, and kept only as a hash.
"""

import secrets
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID, uuid4

from api.directory import Directory, Role
from ledger.application import Ledger
from ledger.services import budgets, nodes, streams

INVITE_VALID_S: Final = 7 * 86_400
_CODE_BYTES: Final = 10


@dataclass(frozen=True, slots=True)
class NewFriend:
    friend_id: UUID
    code: str = field(repr=False)  # with which one node of theirs can join
    token: str = field(repr=False)
    expires_us: int  # of the code


@dataclass(frozen=True, slots=True)
class NewStream:
    stream_id: UUID
    stream_key: str = field(repr=False)
    creator_token: str = field(repr=False)


def invite_friend(ledger: Ledger, directory: Directory, name: str, *, at_us: int) -> NewFriend:
    """Raises Unavailable."""
    friend_id, code = uuid4(), secrets.token_hex(_CODE_BYTES)
    expires_us = at_us + INVITE_VALID_S * 1_000_000
    directory.name_person(friend_id, name)
    nodes.create_invite(ledger, friend_id=friend_id, code=code, expires_us=expires_us, at_us=at_us)
    token = directory.create_token(Role.FRIEND, friend_id, name, at_us=at_us)
    return NewFriend(friend_id, code, token, expires_us)


def new_friend_token(directory: Directory, friend_id: UUID, *, at_us: int) -> str:
    """For a friend who is there already; every token they had is revoked. Raises Unavailable."""
    directory.revoke_tokens(Role.FRIEND, friend_id, at_us=at_us)
    return directory.create_token(
        Role.FRIEND, friend_id, directory.person_name(friend_id) or "friend", at_us=at_us
    )


def register_stream(
    ledger: Ledger, directory: Directory, slug: str, *, owner_name: str | None = None, at_us: int
) -> NewStream:
    """With the crew's tariff. Raises DomainError when the slug is taken or cannot be one, Unavailable."""
    owner_id, stream_key = uuid4(), new_stream_key(slug)
    if owner_name:
        directory.name_person(owner_id, owner_name)
    stream_id = streams.register_stream(
        ledger, slug=slug, owner_id=owner_id, stream_key=stream_key, at_us=at_us
    )
    budgets.set_tariff(ledger, stream_id, at_us=at_us)
    token = directory.create_token(Role.CREATOR, owner_id, slug, at_us=at_us)
    return NewStream(stream_id, stream_key, token)


def new_stream_key(slug: str) -> str:
    return streams.make_stream_key(slug, secrets.token_bytes(streams.SECRET_BYTES))
