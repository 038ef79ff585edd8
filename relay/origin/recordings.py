"""Broadcasts kept on disk, as HLS that any player reads from the folder or over HTTP (`vod.py`).

    {folder}/{slug}/{broadcast}/index.m3u8, {sequence}.ts or .m4s, init-{hash}.mp4

Invariant: a playlist names only files that are whole; it has its end (ENDLIST) only while nobody writes to it. A disk
that is full or slow costs the recording, never the broadcast: `reserve_bytes` of the disk stay free for the ledger,
what waits to be written is bounded, and what finds no room is left out, behind a discontinuity. (EXT-X-GAP says it
better, but VLC 3 and GStreamer 1.22 do not know it and end there.)

All files are written by one thread, in order.
"""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from ledger.events import Segment
from relay.media.packager import Packed
from relay.origin.store import init_name, program_tag, seconds

log = structlog.get_logger()
PLAYLIST: Final = "index.m3u8"
END: Final = "#EXT-X-ENDLIST\n"
LEFT_ALONE_S: Final = 600.0  # a playlist without an end that nobody has touched for so long is closed


def head(kind: str, target_s: int) -> str:
    return (
        f"#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:{target_s}\n"
        f"#EXT-X-PLAYLIST-TYPE:{kind}\n#EXT-X-INDEPENDENT-SEGMENTS\n"
    )


def body(text: str) -> str:
    """The whole entries of a playlist that was perhaps cut off in the middle of a line, without head and end."""
    lines = text[: text.rfind("\n") + 1].splitlines()
    entries = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    last = entries[-1] + 1 if entries else 0
    skipped = (
        "#EXTM3U",
        "#EXT-X-VERSION",
        "#EXT-X-TARGETDURATION",
        "#EXT-X-PLAYLIST-TYPE",
        "#EXT-X-INDEPENDENT",
    )
    return "".join(f"{line}\n" for line in lines[:last] if not line.startswith((*skipped, "#EXT-X-ENDLIST")))


def closed(text: str) -> str:
    """The playlist of a broadcast that is over."""
    entries = body(text)
    durations = [float(line[8:].rstrip(",")) for line in entries.splitlines() if line.startswith("#EXTINF:")]
    return head("VOD", max(1, *(round(d) for d in durations))) + entries + END if durations else ""


class Recordings:
    """`keep_s`: how long after its end a recording is kept. `now_s`: Unix seconds, to compare with files."""

    def __init__(
        self,
        folder: Path,
        *,
        keep_s: float,
        reserve_bytes: int,
        queue_bytes: int,
        longest_s: int,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self.reserve_bytes = reserve_bytes
        self.longest_s = longest_s
        self._keep_s = keep_s
        self._queue_bytes = queue_bytes
        self._now_s = now_s
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="recording")
        self._lock = threading.Lock()
        self._queued = 0
        self._open: set[UUID] = set()

    def start(self, slug: str, broadcast_id: UUID, extension: str) -> "Recording":
        """Begin, or go on with what was begun before."""
        self._open.add(broadcast_id)
        return Recording(self, slug, broadcast_id, extension)

    def ended(self, broadcast_id: UUID) -> None:
        self._open.discard(broadcast_id)

    def sweep(self) -> None:
        """Close what a hub that died left open, delete what is old. In the background."""
        self.submit(0, self._sweep)

    def submit(self, queued_bytes: int, work: Callable[[], None]) -> bool:
        """Have `work` done by the writing thread; False when too much waits there already."""
        with self._lock:
            if queued_bytes and self._queued + queued_bytes > self._queue_bytes:
                return False
            self._queued += queued_bytes

        def run() -> None:
            try:
                work()
            except Exception:  # the thread goes on for the others
                log.exception("recording_failed")
            finally:
                with self._lock:
                    self._queued -= queued_bytes

        self._writer.submit(run)
        return True

    def close(self) -> None:
        """Wait until everything is written."""
        self._writer.shutdown(wait=True)

    def _sweep(self) -> None:
        now_s = self._now_s()
        for playlist in self.folder.glob(f"*/*/{PLAYLIST}"):
            try:
                if UUID(playlist.parent.name) in self._open:
                    continue
                idle_s = now_s - playlist.stat().st_mtime
                if idle_s > self._keep_s:
                    shutil.rmtree(playlist.parent)
                    log.info("recording_deleted", slug=playlist.parts[-3], broadcast=playlist.parent.name)
                elif idle_s > LEFT_ALONE_S:
                    close_playlist(playlist)
            except (OSError, ValueError) as e:
                log.warning("recording_not_swept", path=str(playlist), error=str(e))


def close_playlist(playlist: Path) -> None:
    """Give it its end, keeping its time. Raises OSError."""
    text = playlist.read_text("utf-8")
    if text.endswith(END):
        return
    at = playlist.stat().st_mtime
    _replace(playlist, closed(text))
    os.utime(playlist, (at, at))


class Recording:
    """One broadcast. Its methods return at once."""

    def __init__(self, recordings: Recordings, slug: str, broadcast_id: UUID, extension: str) -> None:
        self._recordings = recordings
        self._broadcast_id = broadcast_id
        self._extension = extension
        self._folder = recordings.folder / slug / str(broadcast_id)
        self._log = log.bind(slug=slug, broadcast=str(broadcast_id))
        self._missed = False  # the last segment found no room in the queue
        # From here on only the writing thread looks.
        self._gap = False  # something is left out before the next segment
        self._begun = False
        self._failing = False
        self._init = b""

    def add(self, segment: Segment, packed: Packed) -> None:
        missed = self._missed
        if self._recordings.submit(len(packed.data), lambda: self._write(segment, packed, missed=missed)):
            self._missed = False
            return
        if not missed:
            self._log.warning(
                "recording_behind", reason="the disk is too slow; these segments will be missing"
            )
        self._missed = True

    def end(self) -> None:
        """The broadcast is over."""

        def finish() -> None:
            if self._begun:
                close_playlist(self._folder / PLAYLIST)

        self._recordings.ended(self._broadcast_id)
        self._recordings.submit(0, finish)

    # --- in the writing thread ---------------------------------------------------------------------------------------

    def _write(self, segment: Segment, packed: Packed, *, missed: bool) -> None:
        self._gap = self._gap or missed
        try:
            self._append(segment, packed)
        except OSError as e:
            self._gap = True
            if not self._failing:
                self._log.error("recording_stopped", reason=str(e), note="the broadcast goes on")
            self._failing = True
            return
        if self._failing:
            self._failing = False
            self._log.info("recording_goes_on", sequence=segment.sequence)

    def _append(self, segment: Segment, packed: Packed) -> None:
        self._begin()
        if shutil.disk_usage(self._folder).free - len(packed.data) < self._recordings.reserve_bytes:
            raise OSError(errno.ENOSPC, "the disk is nearly full")
        head_of_it = "#EXT-X-DISCONTINUITY\n" if segment.discontinuity or self._gap else ""
        if packed.init and packed.init != self._init:
            name = f"init-{init_name(packed.init)}.mp4"
            _replace(self._folder / name, packed.init)
            head_of_it += f'#EXT-X-MAP:URI="{name}"\n'
        _replace(self._folder / f"{segment.sequence}.{self._extension}", packed.data)
        _append(self._folder / PLAYLIST, f"{head_of_it}{self._entry(segment)}".encode())
        self._init = packed.init
        self._gap = False

    def _begin(self) -> None:
        if self._begun:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / PLAYLIST
        entries = body(path.read_text("utf-8")) if path.exists() else ""
        _replace(path, head("EVENT", self._recordings.longest_s) + entries)
        self._begun = True

    def _entry(self, segment: Segment) -> str:
        extinf = f"#EXTINF:{seconds(segment.duration_us)},\n"
        return f"{program_tag(segment)}{extinf}{segment.sequence}.{self._extension}\n"


def _append(path: Path, data: bytes) -> None:
    """All of it, or nothing. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, "the disk is full")
        except OSError:
            file.truncate(before)
            raise


def _replace(path: Path, data: bytes | str) -> None:
    """The whole of it under its name, or nothing new. Raises OSError."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(data if isinstance(data, bytes) else data.encode())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
