"""Every number the ingest and the origin go by. Bytes and counts are bounds: memory stays flat under any push."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from relay.media.packager import PackagerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginSettings:
    packager: PackagerSettings = field(default_factory=PackagerSettings)
    # publishing
    max_connections: int = 256
    handshake_timeout_s: float = 5.0
    publish_timeout_s: float = 10.0  # from connecting to an accepted stream key
    idle_timeout_s: float = 15.0  # without a complete audio or video message
    takeover_silence_s: float = 5.0  # a second publisher of a key wins only over one silent for longer
    publish_grace_s: float = 15.0
    pending_bytes: int = 64 << 20  # segments that wait for the ledger, per stream
    # HLS
    container: Literal["ts", "fmp4"] = "ts"
    chunk_ms: int = 200  # of fMP4; a chunk is what a low-latency viewer gets at a time
    low_latency_viewers: int = 0  # how many at most; they are all carried by the hub. Needs fMP4
    listed_segments: int = 6
    retain_s: float = 60.0
    retain_bytes: int = 64 << 20  # per rendition
    files: Path | None = None  # a folder on a disk for segments that many want; None: they stay in memory
    files_s: float = 20.0  # how long they lie there: less than Linux waits before it writes (30 s)
    playlist_wait_s: float = 5.0  # for the first segment of a stream that is starting
    segment_wait_s: float = 5.0  # for a segment that is about to appear
    steering_timeout_s: float = 1.0  # then the hub serves the segments itself
    still_every_s: int = 30  # a stream's picture is made anew at most so often; 0: none
    # recordings
    recordings: Path | None = None  # the folder they are kept in; None: nothing is recorded
    recording_keep_s: float = 7 * 86_400.0
    recording_reserve_bytes: int = 2 << 30  # of the disk that stay free, for the ledger
    recording_queue_bytes: int = 64 << 20  # that wait for the disk, of all streams
    # HTTP-FLV
    flv_batch_s: float = 0.1  # what came in so long is sent to viewers in one go; 0: each tag at once
    gop_cache_bytes: int = 16 << 20
    viewer_queue_bytes: int = 4 << 20
    viewer_stall_s: float = 30.0  # a viewer that takes nothing for this long is let go
    # statistics
    viewer_seen_s: float = 15.0

    @property
    def reads_together_s(self) -> float:
        """How far apart all encoders are read together; 0: each at once. What has to wait for HTTP-FLV waits in the
        sockets; viewers of parts are to wait for nothing."""
        return self.flv_batch_s if not self.low_latency_viewers else 0.0
