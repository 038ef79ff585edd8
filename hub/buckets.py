"""How many sessions may be opened: each is an event in a log that forgets nothing.

Invariant: of one key at most `burst + rate_s * t` are allowed in any `t` seconds, and of all keys together no more
than the bucket of everybody allows; at most `MAX_KEYS` keys are remembered. Forgetting a key forgives it, the bucket
of everybody does not forget.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_KEYS: Final = 20_000


@dataclass(slots=True)
class Bucket:
    burst: float
    rate_s: float
    left: float
    at_s: float

    def fill(self, now_s: float) -> None:
        self.left = min(self.burst, self.left + max(0.0, now_s - self.at_s) * self.rate_s)
        self.at_s = max(self.at_s, now_s)


class Buckets:
    """Times are monotonic seconds."""

    def __init__(self, *, burst: int, rate_s: float, all_burst: int, all_rate_s: float) -> None:
        self._burst, self._rate_s = burst, rate_s
        self._all = Bucket(all_burst, all_rate_s, all_burst, 0.0)
        self._by_key: OrderedDict[bytes, Bucket] = OrderedDict()

    def take(self, key: bytes, now_s: float) -> bool:
        """Whether one more is allowed for `key`; counted when it is. The empty key stands for nobody in particular."""
        self._all.fill(now_s)
        bucket = self._of(key, now_s) if key else self._all
        if min(bucket.left, self._all.left) < 1:
            return False
        self._all.left -= 1
        if key:
            bucket.left -= 1
        return True

    def _of(self, key: bytes, now_s: float) -> Bucket:
        bucket = self._by_key.get(key)
        if bucket is None:
            bucket = self._by_key[key] = Bucket(self._burst, self._rate_s, self._burst, now_s)
            if len(self._by_key) > MAX_KEYS:
                self._by_key.popitem(last=False)
        self._by_key.move_to_end(key)
        bucket.fill(now_s)
        return bucket
