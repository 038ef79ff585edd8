"""Who watches: sessions seen in the last moments, per stream. For display only; nobody is paid by it.

Invariant: at most `MAX_TRACKED` sessions are remembered, and none longer than `seen_s` after its last request once
somebody asked.
"""

from collections import OrderedDict
from typing import Final
from uuid import UUID

MAX_TRACKED: Final = 100_000


class Viewers:
    """Times are monotonic seconds. The last seen is last in the dict, so the oldest are dropped from its front."""

    def __init__(self, seen_s: float) -> None:
        self._seen_s = seen_s
        # By the session's number: a UUID has its hash computed in Python.
        self._last: OrderedDict[int, tuple[str, float]] = OrderedDict()

    def saw(self, slug: str, session_id: UUID, now_s: float) -> None:
        number = session_id.int
        self._last[number] = (slug, now_s)
        self._last.move_to_end(number)
        if len(self._last) > MAX_TRACKED:
            self._last.popitem(last=False)

    def knows(self, session_id: UUID) -> bool:
        return session_id.int in self._last

    def counts(self, now_s: float) -> dict[str, int]:
        """Viewers by slug."""
        while self._last and next(iter(self._last.values()))[1] < now_s - self._seen_s:
            self._last.popitem(last=False)
        found: dict[str, int] = {}
        for slug, _ in self._last.values():
            found[slug] = found.get(slug, 0) + 1
        return found
