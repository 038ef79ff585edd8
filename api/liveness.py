"""Which nodes are alive, in Valkey: for routing, never for truth.

Invariant: a node is alive for `TTL_S` after its last heartbeat, and nothing here is needed to know what is owed. While
Valkey is away the process that takes the heartbeats goes on with what it heard itself; a process that hears none
says `LivenessUnknown` rather than "all nodes are gone".
"""

import threading
from collections.abc import Callable
from typing import Final, cast
from uuid import UUID

import msgspec
import redis
import structlog

from api.valkey import Breaker

logger = structlog.get_logger()

TTL_S: Final = 15
HEARTBEAT_S: Final = 5
_ALIVE: Final = "nodes:alive"  # sorted set: node id by the second its life ends
_NODES_MAX: Final = 10_000


class LivenessUnknown(Exception):
    """Valkey does not answer and this process has heard no node itself."""


class Pulse(msgspec.Struct, frozen=True):
    """What a node said last."""

    node_id: UUID
    url: str
    viewers: int
    uploaded_bytes: int
    at_us: int


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Pulse).decode


class Liveness:
    """Thread-safe. `client` None: this process alone."""

    def __init__(self, client: redis.Redis | None) -> None:
        self._client = client
        self._heard: dict[UUID, Pulse] = {}
        self._lock = threading.Lock()
        self._breaker = Breaker()

    def beat(self, pulse: Pulse) -> None:
        """Never fails and never waits longer than the timeout."""
        with self._lock:
            self._heard[pulse.node_id] = pulse
            if len(self._heard) > _NODES_MAX:
                oldest = min(self._heard.values(), key=lambda p: p.at_us)
                del self._heard[oldest.node_id]

        def share(client: redis.Redis) -> None:
            ends_s = pulse.at_us // 1_000_000 + TTL_S
            pipe = client.pipeline(transaction=False)
            pipe.set(f"node:{pulse.node_id}", _encode(pulse), ex=TTL_S)
            pipe.zadd(_ALIVE, {str(pulse.node_id): ends_s})
            pipe.zremrangebyscore(_ALIVE, 0, ends_s - 2 * TTL_S)
            pipe.execute()

        self._share(share)

    def forget(self, node_id: UUID) -> None:
        """Suspended or retired: no more viewers from this moment."""
        with self._lock:
            self._heard.pop(node_id, None)

        def share(client: redis.Redis) -> None:
            pipe = client.pipeline(transaction=False)
            pipe.delete(f"node:{node_id}")
            pipe.zrem(_ALIVE, str(node_id))
            pipe.execute()

        self._share(share)

    def alive(self, *, now_us: int) -> dict[UUID, Pulse]:
        """The nodes heard within the last 15 s. Raises LivenessUnknown."""
        if self._client is not None and self._breaker.closed:
            try:
                return self._shared(self._client, now_us)
            except redis.RedisError as e:
                self._breaker.trip()
                logger.warning("liveness from memory", error=str(e))
        with self._lock:
            heard = list(self._heard.values())
        if self._client is not None and not heard:
            raise LivenessUnknown
        return {p.node_id: p for p in heard if p.at_us > now_us - TTL_S * 1_000_000}

    def last(self, node_id: UUID) -> Pulse | None:
        """What this process heard last from the node, however long ago."""
        with self._lock:
            return self._heard.get(node_id)

    def reachable(self) -> bool:
        if self._client is None:
            return True
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def _share(self, write: Callable[[redis.Redis], None]) -> None:
        if self._client is None or not self._breaker.closed:
            return
        try:
            write(self._client)
        except redis.RedisError as e:
            self._breaker.trip()
            logger.warning("liveness not shared", error=str(e))

    def _shared(self, client: redis.Redis, now_us: int) -> dict[UUID, Pulse]:
        # Without a score asked for, members come as plain bytes.
        ids = cast("list[bytes]", client.zrangebyscore(_ALIVE, now_us // 1_000_000, "+inf"))
        if not ids:
            return {}
        found = client.mget([b"node:" + i for i in ids])
        pulses = [_decode(data) for data in found if data is not None]
        return {p.node_id: p for p in pulses}
