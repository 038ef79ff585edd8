"""Rate limits, counted in Valkey so that all processes share them.

Invariant: a limit never fails a request by itself: while Valkey is away each process counts in its own memory. What a
request is counted under (an address, a token) is hashed, so that Valkey holds no addresses.
"""

import hashlib
import math
import time
from dataclasses import dataclass, field
from typing import Final

import redis
import structlog
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from api.valkey import Breaker

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rules:
    """Requests a minute, by what they are counted under. Many viewers share one address (mobile networks, schools)."""

    sessions_per_ip: int = 120
    receipts_per_ip: int = 600
    batches_per_ip: int = 120
    joins_per_ip: int = 20
    requests_per_node: int = 120
    requests_per_token: int = 600


@dataclass(slots=True)
class RateLimiter:
    client: redis.Redis | None
    rules: Rules = field(default_factory=Rules)
    _shared: SlidingWindowCounterRateLimiter | None = field(init=False, default=None)
    _own: SlidingWindowCounterRateLimiter = field(init=False)
    _breaker: Breaker = field(init=False, default_factory=Breaker)

    def __post_init__(self) -> None:
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        if self.client is not None:
            storage = RedisStorage("redis://", connection_pool=self.client.connection_pool, key_prefix="limit")
            self._shared = SlidingWindowCounterRateLimiter(storage)

    def hit(self, rule: str, who: str) -> int | None:
        """Count one request under the rule of that name. Seconds to wait when it is one too many, else None."""
        limit = RateLimitItemPerMinute(getattr(self.rules, rule))
        key = (rule, hashlib.sha256(who.encode("utf-8", "surrogateescape")).hexdigest()[:24])
        if self._shared is not None and self._breaker.closed:
            try:
                return _hit(self._shared, limit, key)
            except redis.RedisError as e:
                self._breaker.trip()
                logger.warning("rate limits from memory", error=str(e))
        return _hit(self._own, limit, key)


_RETRY_MIN_S: Final = 1


def _hit(
    limiter: SlidingWindowCounterRateLimiter, limit: RateLimitItem, key: tuple[str, str]
) -> int | None:
    if limiter.hit(limit, *key):
        return None
    return max(_RETRY_MIN_S, math.ceil(limiter.get_window_stats(limit, *key).reset_time - time.time()))
