"""The origin as one object: take over the RTMP sockets, mount the ASGI application, close."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay.ingest import IngestServer
from relay.origin.asgi import MediaApp
from relay.origin.live import Catalogue, Refusal
from relay.origin.settings import OriginSettings
from relay.ports import PublishAuthority, Steering
from relay.srt.server import SrtServer


@dataclass(frozen=True, slots=True)
class LiveStats:
    slug: str
    publishing: bool  # False: within the grace period
    viewers: int  # HLS sessions seen in the last `viewer_seen_s`, and HTTP-FLV connections
    held_bytes: int  # of segments in memory


@dataclass(frozen=True, slots=True)
class OriginStats:
    live: tuple[LiveStats, ...]
    encoders: int  # RTMP connections
    received_bytes: int  # over RTMP, since the start
    sent_bytes: int  # segments and HTTP-FLV handed to the HTTP server, since the start; no proof of delivery


class Origin:
    """Use inside one running event loop. `now_us`: wall clock in Unix microseconds. `child_setup` runs in programs
    that read what strangers send, before they do (a `preexec_fn`)."""

    def __init__(
        self,
        authority: PublishAuthority,
        steering: Steering,
        settings: OriginSettings | None,
        now_us: Callable[[], int],
        child_setup: Callable[[], None] | None = None,
    ) -> None:
        chosen = settings if settings is not None else OriginSettings()
        self._catalogue = Catalogue(authority, chosen, now_us)
        self._ingest = IngestServer(authority, self._catalogue, chosen)
        self._srt = SrtServer(authority, self._catalogue, chosen, child_setup)
        self.asgi = MediaApp(self._catalogue, steering, chosen, now_us)

    async def start_rtmp_on(
        self, listeners: Sequence[socket.socket], tls: ssl.SSLContext | None = None
    ) -> None:
        """Accept encoders from sockets that listen already, with `tls` over RTMPS; they are closed with the origin."""
        for listener in listeners:
            await self._ingest.start_on(listener, tls)

    async def start_srt(self, host: str, ports: Sequence[int], passphrase: str | None = None) -> bool:
        """One encoder a port; with a `passphrase` (10 to 64 letters, digits, - and _) only one that has it. False, with
        the reason in the log, when this machine has no ffmpeg that can."""
        return await self._srt.start(host, ports, passphrase)

    async def close(self, timeout_s: float = 10.0) -> None:
        """End every broadcast, give the ledger `timeout_s` to record it, close all connections."""
        self._ingest.stop_listening()
        self._srt.stop_listening()
        await self._catalogue.close(timeout_s)
        await self._ingest.close()
        await self._srt.close()
        await self.asgi.close()

    def sweep_recordings(self) -> None:
        """Close and delete what is due, in the background."""
        if self._catalogue.recordings is not None:
            self._catalogue.recordings.sweep()

    def refusal(self, slug: str) -> Refusal | None:
        """Why the stream's last encoder was refused for what it sent; None once it has sent a segment."""
        return self._catalogue.refusals.get(slug)

    def stats(self) -> OriginStats:
        seen = self.asgi.viewers.counts(asyncio.get_running_loop().time())
        live = tuple(
            LiveStats(
                slug=one.slug,
                publishing=one.publisher is not None,
                viewers=seen.get(one.slug, 0) + len(one.fanout.viewers),
                held_bytes=one.rendition.held_bytes if one.rendition is not None else 0,
            )
            for one in self._catalogue.lives.values()
            if one.on_air
        )
        return OriginStats(live, self._ingest.connections, self._ingest.received_bytes, self.asgi.sent_bytes)
