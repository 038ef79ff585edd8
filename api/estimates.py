"""What is being earned and is not settled yet, in Valkey: to be looked at, never truth.

Invariant: what is shown is one whole estimate, the newest, or none. The next one replaces it at once, and it ends by
itself when nobody makes a new one; whoever reads it also gets the place in the log that it stands on.
"""

from typing import Any, Final
from uuid import UUID

import msgspec
import redis
import structlog

from api.valkey import Breaker
from ledger.services.estimate import Estimate, Portion

logger = structlog.get_logger()

_KEY: Final = "estimate"  # hash: "of" -> _Of, id of a friend or stream -> Portion
_OF: Final = "of"


class _Of(msgspec.Struct, frozen=True):
    position: int
    ends_us: int


class Estimated(msgspec.Struct, frozen=True):
    """One friend's or stream's part of an estimate."""

    position: int  # the log before it was read
    ends_us: int
    credited_bytes: int
    amount_micro: int


_encode: Final = msgspec.json.Encoder().encode
_decode_of: Final = msgspec.json.Decoder(_Of).decode
_decode_portion: Final = msgspec.json.Decoder(Portion).decode


class Estimates:
    """Thread-safe. `client` None: nothing is known."""

    def __init__(self, client: redis.Redis | None) -> None:
        self._client = client
        self._breaker = Breaker()

    def share(self, made: Estimate, *, for_s: int) -> None:
        """Put it in the place of the one before, to be shown for so many seconds. Never fails."""
        if self._client is None or not self._breaker.closed:
            return
        fields: dict[Any, Any] = {_OF: _encode(_Of(made.position, made.ends_us))}
        for portions in (made.friends, made.streams):
            fields |= {str(name): _encode(portion) for name, portion in portions.items()}
        pipe = self._client.pipeline(transaction=True)
        pipe.delete(_KEY)
        pipe.hset(_KEY, mapping=fields)
        pipe.expire(_KEY, for_s)
        try:
            pipe.execute()
        except redis.RedisError as e:
            self._breaker.trip()
            logger.warning("estimate not shared", error=str(e))

    def of(self, friend_or_stream: UUID) -> Estimated | None:
        """Their part of the newest estimate; None: not known. Never fails and never waits longer than the timeout."""
        if self._client is None or not self._breaker.closed:
            return None
        try:
            of, portion = self._client.hmget(_KEY, [_OF, str(friend_or_stream)])
        except redis.RedisError as e:
            self._breaker.trip()
            logger.warning("estimate not known", error=str(e))
            return None
        if of is None:
            return None
        head = _decode_of(of)
        mine = _decode_portion(portion) if portion is not None else Portion()
        return Estimated(head.position, head.ends_us, mine.credited_bytes, mine.amount_micro)
