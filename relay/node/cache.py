"""Segments in memory: bounded by bytes, least recently used out first, each pulled once however many ask.

Invariant: only bytes whose SHA-256 matched the hub's `Repr-Digest` are ever returned or kept; the bytes kept never
exceed `max_bytes`; at most one pull per segment is under way.
"""

import asyncio
import base64
import binascii
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from relay.body import Body
from relay.node.hub_client import HubError, Pulled

log = structlog.get_logger()

MAX_PULLS: Final = 16
MAX_WAITING_PULLS: Final = 256
Fetch = Callable[[UUID, int], Awaitable[Pulled]]


class CorruptSegmentError(Exception):
    """The hub's bytes do not match the hub's own digest, twice."""


class Busy(Exception):
    """Too many different segments are being pulled at once."""


@dataclass(frozen=True, slots=True)
class Cached:
    body: Body
    repr_digest: bytes  # header value, as the hub gave it


def digest_of(header: str) -> bytes | None:
    """SHA-256 from a `Repr-Digest` field (RFC 9530): `sha-256=:base64:`, possibly among others."""
    for item in header.split(","):
        algorithm, _, value = item.strip().partition("=")
        if algorithm.lower() == "sha-256" and len(value) > 2 and value[0] == value[-1] == ":":
            try:
                digest = base64.b64decode(value[1:-1], validate=True)
            except (binascii.Error, ValueError):
                return None
            return digest if len(digest) == 32 else None
    return None


class SegmentCache:
    def __init__(self, fetch: Fetch, *, max_bytes: int) -> None:
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[UUID, int], Cached] = OrderedDict()
        self._pulls: dict[tuple[UUID, int], asyncio.Task[Cached]] = {}
        self._slots = asyncio.Semaphore(MAX_PULLS)
        self.kept_bytes = 0
        self.pulled_bytes = 0
        self.corrupt = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, rendition: UUID, sequence: int) -> Cached:
        """From memory or from the hub. Raises HubError, CorruptSegmentError or Busy."""
        kept = self.kept(rendition, sequence)
        if kept is not None:
            return kept
        name = (rendition, sequence)
        joined = name in self._pulls
        try:
            return await asyncio.shield(
                self._pulling(name)
            )  # one viewer going away does not stop it for the others
        except HubError as e:
            if not (joined and e.status == 404):
                raise
        # The pull had begun before this request, perhaps before the segment was published.
        return await asyncio.shield(self._pulling(name))

    def kept(self, rendition: UUID, sequence: int) -> Cached | None:
        """From memory, as one that is in use."""
        kept = self._kept.get((rendition, sequence))
        if kept is not None:
            self._kept.move_to_end((rendition, sequence))
        return kept

    async def close(self) -> None:
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)

    def _pulling(self, name: tuple[UUID, int]) -> asyncio.Task[Cached]:
        pull = self._pulls.get(name)
        if pull is None or pull.done():  # done: it failed, and its callback has not run yet
            if len(self._pulls) >= MAX_WAITING_PULLS:
                raise Busy
            pull = self._pulls[name] = asyncio.create_task(self._pull(name))
            pull.add_done_callback(lambda task: self._pulled(name, task))
        return pull

    def _pulled(self, name: tuple[UUID, int], task: asyncio.Task[Cached]) -> None:
        if self._pulls.get(name) is task:
            del self._pulls[name]
        if not task.cancelled():
            task.exception()  # looked at, also when every viewer who waited has gone

    async def _pull(self, name: tuple[UUID, int]) -> Cached:
        async with self._slots:
            for attempt in (1, 2):
                pulled = await self._fetch(*name)
                self.pulled_bytes += len(pulled.data)
                if digest_of(pulled.repr_digest) == pulled.sha256:
                    cached = Cached(Body(pulled.data), pulled.repr_digest.encode("ascii"))
                    self._keep(name, cached)
                    return cached
                self.corrupt += 1
                log.warning(
                    "segment does not match its digest",
                    rendition=str(name[0]),
                    sequence=name[1],
                    attempt=attempt,
                )
        raise CorruptSegmentError

    def _keep(self, name: tuple[UUID, int], cached: Cached) -> None:
        if len(cached.body) > self._max_bytes:
            return
        self._kept[name] = cached
        self.kept_bytes += len(cached.body)
        while self.kept_bytes > self._max_bytes:
            _, gone = self._kept.popitem(last=False)
            self.kept_bytes -= len(gone.body)
