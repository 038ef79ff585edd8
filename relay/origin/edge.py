"""The live edge: chunks of segments that are not recorded yet, for low-latency viewers.

Invariant: what is shown are the chunks of the one segment that comes right after the last recorded one, so the sequence
they are shown under is the one the ledger will give it; after a publisher was lost nothing is shown until the ledger
says how the broadcast goes on. Segments leave in the order in which they began.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.media.packager import Chunk


@dataclass(slots=True)
class Growing:
    init: bytes
    discontinuity: bool
    chunks: list[Chunk] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    whole: bool = False


class Edge:
    """`relay.media.cmaf.ChunkSink`. `changed` is called after each chunk."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._open: deque[Growing] = deque()  # oldest first; all but the newest are whole
        self._shown = False
        self._broken = False  # the next segment is a discontinuity

    @property
    def first(self) -> Growing | None:
        """The segment that comes after the last recorded one."""
        return self._open[0] if self._shown and self._open else None

    # --- from the muxer ----------------------------------------------------------------------------------------------

    def begin(self, init: bytes, *, discontinuity: bool) -> None:
        self._open.append(Growing(init, discontinuity or self._broken))
        self._broken = False

    def chunk(self, data: bytes, chunk: Chunk) -> None:
        self._open[-1].data.append(data)
        self._open[-1].chunks.append(chunk)
        self._changed()

    def finish(self) -> None:
        self._open[-1].whole = True

    def abandon(self) -> None:
        self._open.pop()

    # --- from the stream ---------------------------------------------------------------------------------------------

    def hide(self) -> None:
        """The publisher has gone; what the next one sends belongs where the ledger says."""
        self._shown = False

    def show(self, *, resumed: bool) -> None:
        """The ledger has taken the publisher: everything older is recorded."""
        self._shown = True
        if resumed and self._open:
            self._open[0].discontinuity = True
        elif resumed:
            self._broken = True

    def recorded(self) -> None:
        """The oldest segment has become a listed one."""
        self._open.popleft()

    def dropped(self) -> None:
        """The newest segment found no room to wait for the ledger."""
        self._open.pop()
        self._broken = True

    def clear(self) -> None:
        """The ledger will have none of it."""
        self._open.clear()
        self._shown = self._broken = False
