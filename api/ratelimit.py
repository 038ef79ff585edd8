"""Rate limits, counted in Valkey so that all processes share them.

Invariant: a limit never fails a request by itself: while Valkey is away each process counts in its own memory. What a
request is counted under (an address, a token) is hashed, so that Valkey holds no addresses.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from typing import Final

import redis
import structlog
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from api.valkey import Breaker, connect

logger = structlog.get_logger()

_RETRY_S_MIN: Final = 1


@dataclass(frozen=True, slots=True)
class Rules:
    """Requests a minute, by what they are counted under. Many viewers share one address (mobile networks, schools)."""

    sessions_per_ip: int = 120
    receipts_per_ip: int = 600
    batches_per_ip: int = 120
    batches_per_node: int = 60
    joins_per_ip: int = 20
    requests_per_node: int = 120
    checks_per_node: int = 12
    requests_per_token: int = 600


class RateLimiter:
    """Thread-safe. `redis_url` None: this process counts alone."""

    def __init__(self, redis_url: str | None, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        self._breaker = Breaker()
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared: SlidingWindowCounterRateLimiter | None = None
        if redis_url is not None:
            pool = connect(redis_url).connection_pool
            storage = RedisStorage("redis://", connection_pool=pool, key_prefix="limit")
            self._shared = SlidingWindowCounterRateLimiter(storage)

    def hit(self, rule: str, who: str) -> int | None:
        """Count one request under the rule of that name. Seconds to wait when it is one too many, else None."""
        limit = RateLimitItemPerMinute(getattr(self._rules, rule))
        key = (rule, hashlib.sha256(who.encode("utf-8", "surrogateescape")).hexdigest()[:24])
        if self._shared is not None and self._breaker.closed:
            try:
                return _hit(self._shared, limit, key)
            except redis.RedisError as e:
                self._breaker.trip()
                logger.warning("rate limits from memory", error=str(e))
        return _hit(self._own, limit, key)


def _hit(limiter: SlidingWindowCounterRateLimiter, limit: RateLimitItem, key: tuple[str, str]) -> int | None:
    if limiter.hit(limit, *key):
        return None
    return max(_RETRY_S_MIN, math.ceil(limiter.get_window_stats(limit, *key).reset_time - time.time()))
