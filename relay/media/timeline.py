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
_HALF: Final = _WRAP >> 1


@dataclass(slots=True)
class Timeline:
    """Milliseconds in, modulo 2**32; milliseconds out, from 0 and unbounded."""

    _offset: int = 0  # out = unwrapped in + offset
    _raw: int | None = None  # the last timestamp in, of either track
    _unwrapped: int = 0
    _in: list[int | None] = field(
        default_factory=lambda: [None, None]
    )  # the last of sound and picture, unwrapped
    _out: list[int] = field(default_factory=lambda: [-1, -1])  # the last of sound and picture

    def restart(self) -> None:
        """Another encoder continues: its clock has nothing to do with the one before."""
        self._raw = None

    def place(self, timestamp: int, *, video: bool) -> tuple[int, bool]:
        """Where a frame goes, and whether the encoder's clock jumped before it."""
        raw, outs = self._raw, self._out
        if raw is not None and -APART_MS <= timestamp - raw <= GAP_MS:
            unwrapped = self._unwrapped + timestamp - raw
            out = unwrapped + self._offset
            if (
                out > outs[video]
            ):  # nearly all: later than the frame before, which went no earlier than it said
                self._raw, self._unwrapped = timestamp, unwrapped
                self._in[video], outs[video] = unwrapped, out
                return out, False
        jumped = False
        if self._raw is not None:
            ahead = (timestamp - self._raw + _HALF) % _WRAP - _HALF  # both count modulo 2**32
            self._unwrapped += ahead
            last = self._in[video]
            back = last is not None and self._unwrapped < last - BACK_MS
            jumped = back or not -APART_MS <= ahead <= GAP_MS
        if self._raw is None or jumped:
            self._unwrapped = timestamp
            latest = max(self._out)
            self._offset = (latest + STEP_MS if latest >= 0 else 0) - timestamp
            self._in = [None, None]
        self._raw = timestamp
        self._in[video] = self._unwrapped
        out, least = self._unwrapped + self._offset, self._out[video] + 1
        if out < least:
            out = least
        self._out[video] = out
        return out, jumped
