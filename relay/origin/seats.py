"""Who gets low latency: at most so many sessions, because the hub itself carries them (docs/adr/0026).

A session that is new is shown parts while there is room; they are beside the segments and harm no player. When it asks
for its next playlist in the low-latency way it keeps the seat, when it asks as other players do the seat is free.

Invariant: at most `count` sessions have a seat or are being asked; a seat is free `KEEP_S` after its last playlist.
"""

import re
from collections import OrderedDict
from typing import Final
from uuid import UUID

KEEP_S: Final = 10.0
_DIRECTIVE: Final = re.compile(rb"_HLS_(msn|part)=(\d{1,18})")


def reload_of(query: bytes) -> tuple[int, int | None] | str | None:
    """The segment, and the part of it, that a playlist is asked for by (RFC 8216bis, 6.2.5.2); None for an ordinary
    request; a text when it is wrong."""
    if b"_HLS_" not in query:
        return None
    found = {m[1]: int(m[2]) for m in map(_DIRECTIVE.fullmatch, query.split(b"&")) if m}
    if b"msn" not in found:
        return "_HLS_part needs _HLS_msn" if b"part" in found else None
    return found[b"msn"], found.get(b"part")


class Seats:
    """Times are monotonic seconds. The last to be seen is last in the dict."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._last: OrderedDict[UUID, float] = OrderedDict()
        self._asked: set[UUID] = set()  # shown parts, and not back yet

    def __len__(self) -> int:
        return len(self._last)

    def has(self, session: UUID) -> bool:
        return session in self._last

    def concern(self, session: UUID, *, new: bool) -> bool:
        """Whether `take` could matter to the session's next ordinary request."""
        return session in self._last or (new and self._count > 0)

    def take(self, session: UUID, *, knows: bool, new: bool, now_s: float) -> bool:
        """Whether this request is answered with parts. `knows`: it came the low-latency way."""
        while self._last and next(iter(self._last.values())) < now_s - KEEP_S:
            gone, _ = self._last.popitem(last=False)
            self._asked.discard(gone)
        if session in self._last:
            if session in self._asked and not knows:
                del self._last[session]
                self._asked.discard(session)
                return False
        elif (knows or new) and len(self._last) < self._count:
            if not knows:
                self._asked.add(session)
        else:
            return False
        if knows:
            self._asked.discard(session)
        self._last[session] = now_s
        self._last.move_to_end(session)
        return True
