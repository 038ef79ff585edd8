"""Valkey (Redis), spoken to so that its absence never holds up a request.

Invariant: a call waits at most `TIMEOUT_S`, and after one failure the next calls do not wait at all for a few seconds.
"""

import time
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

TIMEOUT_S: Final = 0.25
REST_S: Final = 5.0


def connect(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(
        redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    )


class Breaker:
    """Leaves Valkey alone for a while after a failure."""

    def __init__(self, rest_s: float = REST_S) -> None:
        self._rest_s = rest_s
        self._until_s = 0.0

    @property
    def closed(self) -> bool:
        return time.monotonic() >= self._until_s

    def trip(self) -> None:
        self._until_s = time.monotonic() + self._rest_s
