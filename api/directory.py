"""What can be erased: people's names, nodes' names and addresses, API tokens. None of it is ever in an event.

Invariant: erasing any row here changes no balance, no proof and no audit. Of a token only its SHA-256 is kept, so the
table cannot be used to log in; looking a token up by its hash takes the same time whatever the secret.
"""

import hashlib
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from ledger.application import Unavailable
from ledger.services.destinations import load_destinations

TOKEN_CHARS_MAX: Final = 80
TOKEN_NAME_CHARS: Final = 12
_CACHE_S: Final = 10  # how long a revoked token may still be taken
_CACHE_SIZE: Final = 1_000


class Role(StrEnum):
    OPERATOR = "operator"
    CREATOR = "creator"
    FRIEND = "friend"


@dataclass(frozen=True, slots=True)
class Token:
    """Who sends a request: a role and the person (creator's or friend's id); operators are no one in particular."""

    sha256: bytes
    role: Role
    subject_id: UUID | None


@dataclass(frozen=True, slots=True)
class TokenShown:
    """What may be told of a token that is in force."""

    name: str  # the first 12 hex digits of its SHA-256: what the log calls an operator who used the API
    label: str
    created_us: int


@dataclass(frozen=True, slots=True)
class NodeProfile:
    node_id: UUID
    name: str
    url: str | None


class Directory:
    """One crew's erasable tables. Thread-safe. Every method may raise ledger.application.Unavailable."""

    def __init__(self, pool: ConnectionPool[psycopg.Connection[tuple[Any, ...]]]) -> None:
        self._pool = pool
        self._tokens: dict[bytes, tuple[int, Token]] = {}  # hash -> until (us), token
        self._lock = threading.Lock()

    # --- tokens

    def create_token(self, role: Role, subject_id: UUID | None, label: str, *, at_us: int) -> str:
        """`sp2p_<role>_<43 chars>`: 256 random bits, to be shown once."""
        token = f"sp2p_{role}_{secrets.token_urlsafe(32)}"
        self._run(
            "INSERT INTO api_tokens (token_sha256, role, subject_id, label, created_us) VALUES (%s, %s, %s, %s, %s)",
            (_sha256(token), role.value, subject_id, label, at_us),
        )
        return token

    def token(self, text: str, *, now_us: int) -> Token | None:
        """None for a token that was never given out or is revoked (for at most 10 s longer, it is cached)."""
        if len(text) > TOKEN_CHARS_MAX:
            return None
        digest = _sha256(text)
        with self._lock:
            cached = self._tokens.get(digest)
        if cached is not None and cached[0] > now_us:
            return cached[1]
        rows = self._run(
            "SELECT role, subject_id FROM api_tokens WHERE token_sha256 = %s AND revoked_us IS NULL",
            (digest,),
        )
        if not rows:
            return None
        token = Token(digest, Role(rows[0][0]), rows[0][1])
        with self._lock:
            if len(self._tokens) >= _CACHE_SIZE:
                self._tokens.clear()
            self._tokens[digest] = (now_us + _CACHE_S * 1_000_000, token)
        return token

    def revoke_tokens(self, role: Role, subject_id: UUID | None, *, at_us: int) -> int:
        """How many were revoked."""
        with self._lock:
            self._tokens.clear()
        rows = self._run(
            "UPDATE api_tokens SET revoked_us = %s WHERE role = %s AND subject_id IS NOT DISTINCT FROM %s "
            "AND revoked_us IS NULL RETURNING 1",
            (at_us, role.value, subject_id),
        )
        return len(rows)

    def tokens(self, role: Role) -> list[TokenShown]:
        """Those that are not revoked, oldest first."""
        rows = self._run(
            "SELECT encode(token_sha256, 'hex'), label, created_us FROM api_tokens "
            "WHERE role = %s AND revoked_us IS NULL ORDER BY created_us, token_sha256",
            (role.value,),
        )
        return [TokenShown(digest[:TOKEN_NAME_CHARS], label, at_us) for digest, label, at_us in rows]

    def revoke_token(self, role: Role, name: str, *, at_us: int) -> int:
        """The one whose `TokenShown.name` this is; how many were revoked."""
        with self._lock:
            self._tokens.clear()
        rows = self._run(
            "UPDATE api_tokens SET revoked_us = %s WHERE role = %s AND left(encode(token_sha256, 'hex'), %s) = %s "
            "AND revoked_us IS NULL RETURNING 1",
            (at_us, role.value, TOKEN_NAME_CHARS, name),
        )
        return len(rows)

    # --- people

    def name_person(self, person_id: UUID, display_name: str) -> None:
        self._run(
            "INSERT INTO people (person_id, display_name) VALUES (%s, %s) "
            "ON CONFLICT (person_id) DO UPDATE SET display_name = excluded.display_name",
            (person_id, display_name),
        )

    def person_name(self, person_id: UUID) -> str | None:
        rows = self._run("SELECT display_name FROM people WHERE person_id = %s", (person_id,))
        return rows[0][0] if rows else None

    def people_named(self, display_name: str) -> list[UUID]:
        rows = self._run(
            "SELECT person_id FROM people WHERE display_name = %s ORDER BY person_id", (display_name,)
        )
        return [row[0] for row in rows]

    def friends(self) -> dict[UUID, str]:
        """Names by id, in the order of the names: everybody who was ever given a friend's token."""
        rows = self._run(
            "SELECT person_id, display_name FROM people WHERE person_id IN "
            "(SELECT subject_id FROM api_tokens WHERE role = %s) ORDER BY display_name, person_id",
            (Role.FRIEND.value,),
        )
        return dict(rows)

    def destination_commitments(self) -> dict[UUID, bytes]:
        """What the log will know of where each friend is paid; friends who did not say are missing."""
        try:
            with self._pool.connection() as connection:
                return {friend: d.commitment for friend, d in load_destinations(connection).items()}
        except (psycopg.OperationalError, PoolTimeout) as e:
            raise Unavailable("the directory's tables cannot be reached") from e

    # --- nodes

    def save_profile(self, profile: NodeProfile, *, at_us: int) -> None:
        self._run(
            "INSERT INTO node_profiles (node_id, name, url, updated_us) VALUES (%s, %s, %s, %s) ON CONFLICT (node_id) "
            "DO UPDATE SET name = excluded.name, url = excluded.url, updated_us = excluded.updated_us",
            (profile.node_id, profile.name, profile.url, at_us),
        )

    def move_node(self, node_id: UUID, url: str, *, at_us: int) -> None:
        """The node's address, without touching its name."""
        self._run(
            "INSERT INTO node_profiles (node_id, name, url, updated_us) VALUES (%s, '', %s, %s) "
            "ON CONFLICT (node_id) DO UPDATE SET url = excluded.url, updated_us = excluded.updated_us",
            (node_id, url, at_us),
        )

    def node_names(self, node_ids: Iterable[UUID]) -> dict[UUID, str]:
        """Names by node; a node whose profile was erased is missing."""
        rows = self._run(
            "SELECT node_id, name FROM node_profiles WHERE node_id = ANY(%s) AND name <> ''",
            (list(node_ids),),
        )
        return dict(rows)

    def nodes_named(self, name: str) -> list[UUID]:
        rows = self._run("SELECT node_id FROM node_profiles WHERE name = %s ORDER BY node_id", (name,))
        return [row[0] for row in rows]

    def _run(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            with self._pool.connection() as connection:
                cursor = connection.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        except (psycopg.OperationalError, PoolTimeout) as e:
            raise Unavailable("the directory's tables cannot be reached") from e


def token_name(token: str) -> str:
    """By which `TokenShown` knows it."""
    return _sha256(token).hex()[:TOKEN_NAME_CHARS]


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
