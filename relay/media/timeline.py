"""One clock for what goes out, however the encoder's clock behaves.

Invariant: the times of each track rise strictly, for as long as the timeline lives; a jump of the encoder's clock
(back, ahead by more than `GAP_MS`, or a new encoder) becomes one `jumped` and a step of `STEP_MS`, never a gap.
"""

from dataclasses import dataclass, field
from typing import Final

GAP_MS: Final = 3_000  # ahead of the frame before, on either track
BACK_MS: Final = 100  # within one track: less is jitter of the encoder and is smoothed
APART_MS: Final = 2_000  # how far the two tracks may be behind each other
STEP_MS: Final = 40
_WRAP: Final = 1 << 32


def _signed(difference: int) -> int:
    """The distance of two timestamps that count modulo 2**32."""
    return (difference + (_WRAP >> 1)) % _WRAP - (_WRAP >> 1)


@dataclass(slots=True)
class Timeline:
    """Milliseconds in, modulo 2**32; milliseconds out, from 0 and unbounded."""

    _offset: int = 0  # out = unwrapped in + offset
    _raw: int | None = None  # the last timestamp in, of either track
    _unwrapped: int = 0
    _track_in: dict[bool, int] = field(default_factory=dict)  # unwrapped, by track (True: video)
    _track_out: dict[bool, int] = field(default_factory=dict)

    def restart(self) -> None:
        """Another encoder continues: its clock has nothing to do with the one before."""
        self._raw = None

    def place(self, timestamp: int, *, video: bool) -> tuple[int, bool]:
        """Where a frame goes, and whether the encoder's clock jumped before it."""
        if self._raw is None:
            jumped, ahead = False, 0
        else:
            ahead = _signed(timestamp - self._raw)
            back = self._unwrapped + ahead - self._track_in.get(video, self._unwrapped + ahead)
            jumped = ahead > GAP_MS or ahead < -APART_MS or back < -BACK_MS
        if self._raw is None or jumped:
            self._unwrapped = timestamp
            latest = max(self._track_out.values(), default=-STEP_MS)
            self._offset = latest + STEP_MS - timestamp
            self._track_in.clear()
        else:
            self._unwrapped += ahead
        self._raw = timestamp
        self._track_in[video] = self._unwrapped
        out = max(self._unwrapped + self._offset, self._track_out.get(video, -1) + 1)
        self._track_out[video] = out
        return out, jumped
