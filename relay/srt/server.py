"""The SRT ports: one encoder a port, its key, its time limits; then the same way as a push over RTMP.

Invariant: no byte of media is parsed before `check_key` said yes; what comes meanwhile waits in pipes of bounded size.
Every ffmpeg ends: by its encoder, by a limit, or with a reason in the log; after each a new one listens, ever more
slowly when none was accepted. The key is never logged.

SRT tells no encoder why, and ffmpeg does not tell a stop from a lost connection: each end starts the grace period.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from subprocess import SubprocessError
from typing import Any, Final

import structlog

from relay.media import flv
from relay.media.errors import BadMedia, UnsupportedMedia
from relay.media.flv_reader import FlvReader
from relay.origin.live import Catalogue, Live
from relay.origin.settings import OriginSettings
from relay.ports import PublishAuthority
from relay.srt.listener import PIPE_BYTES, Listener, Said, end, find_ffmpeg, kill, listen
from relay.stream_key import granted

log = structlog.get_logger()
KEY_TIMEOUT_S: Final = 5.0  # from the first byte of media to the stream id
LAST_WORDS_S: Final = 1.0  # of an ffmpeg that has closed its output
PAUSE_FIRST_S: Final = 0.25  # an encoder tries for 3 s to connect
PAUSE_MAX_S: Final = 4.0
_AAC_HEADER_TO_COME: Final = b"\xaf\0"  # ffmpeg begins so, and sends the header with the first frame


class _Refused(Exception):
    """The encoder is not accepted, or no longer."""


class _Encoder:
    """One ffmpeg and the encoder that comes to it."""

    def __init__(self, server: "SrtServer", process: asyncio.subprocess.Process) -> None:
        self._server = server
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._said = Said()
        self._reader = FlvReader()
        self._live: Live | None = None
        self._last_media = 0.0
        self._announced = False  # the packager knows what to expect
        self._expelled: str | None = None
        self.accepted = False

    # --- relay.origin.live.Publisher ---------------------------------------------------------------------------------

    @property
    def silent_s(self) -> float:
        return self._loop.time() - self._last_media

    def expel(self, reason: str) -> None:
        self._live = None
        self._expelled = reason
        kill(self._process)

    @property
    def complaints(self) -> str:
        """What ffmpeg said; for the log alone, strangers have a part in it."""
        return self._said.complaints

    # --- the way of a push -------------------------------------------------------------------------------------------

    async def run(self) -> str:
        """Until the encoder's end. Returns why; the process is gone then."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        following = self._loop.create_task(self._said.follow(self._process.stderr))
        first = self._loop.create_task(self._process.stdout.read(PIPE_BYTES))
        reason, clean = "the hub stopped listening", False
        try:
            reason = await self._serve(first, self._process.stdout, following)
        except _Refused as e:
            reason = str(e)
        except (UnsupportedMedia, BadMedia) as e:
            reason, clean = str(e), True
            if self._live is not None:
                self._live.refuse(self, reason)
        finally:
            live, self._live = self._live, None
            if live is not None:
                live.leave(self, clean=clean, reason=reason)
            first.cancel()
            await asyncio.wait([first])
            await end(self._process)
            await following
        return reason

    async def _serve(
        self, first: asyncio.Task[bytes], pipe: asyncio.StreamReader, following: asyncio.Task[None]
    ) -> str:
        await self._accept(await self._stream_key(first))
        data = await self._in_time(first)
        while data:
            self._media(data)
            data = await self._in_time(pipe.read(PIPE_BYTES))
        if self._expelled is not None:
            return self._expelled
        await asyncio.wait([following], timeout=LAST_WORDS_S)
        if not self._announced and (unsupported := self._said.unsupported) is not None:
            raise UnsupportedMedia(unsupported)
        return "the encoder stopped or its connection was lost"

    async def _stream_key(self, first: asyncio.Task[bytes]) -> str:
        """Waits as long as nobody comes. Raises OSError when ffmpeg does not."""
        stream_id = self._said.stream_id
        events: tuple[asyncio.Future[Any], ...] = (stream_id, first)
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([stream_id], timeout=KEY_TIMEOUT_S)
        if not stream_id.done():
            raise _Refused(f"no stream key within {KEY_TIMEOUT_S:g} s")
        key = stream_id.result()
        if key is None:
            raise OSError(f"ffmpeg ended before an encoder came: {self.complaints or 'it did not say why'}")
        return key

    async def _accept(self, stream_key: str) -> None:
        server = self._server
        try:
            async with asyncio.timeout(server.settings.publish_timeout_s):
                grant = await granted(server.authority, stream_key)
        except TimeoutError:
            raise _Refused("the stream key could not be checked in time") from None
        if isinstance(grant, str):
            raise _Refused(grant)
        if server.stopping:
            raise _Refused("the hub is shutting down")
        taken = server.catalogue.publish(grant, self)
        if isinstance(taken, str):
            raise _Refused(taken)
        self._live = taken
        self._last_media = self._loop.time()
        self.accepted = True
        log.info("publisher_joined", slug=grant.slug, over="SRT")

    async def _in_time(self, data: Awaitable[bytes]) -> bytes:
        idle_s = self._server.settings.idle_timeout_s
        try:
            async with asyncio.timeout_at(self._last_media + idle_s):
                return await data
        except TimeoutError:
            raise _Refused(f"no media for {idle_s:g} s") from None

    def _media(self, data: bytes) -> None:
        for kind, timestamp, body in self._reader.feed(data):
            live = self._live
            if live is None or live.packager is None:
                return  # expelled while the rest of a read is handled
            if not self._announced:
                expected = {"hasAudio": self._reader.has_audio, "hasVideo": self._reader.has_video}
                live.packager.metadata(expected)
                self._announced = True
            if kind == flv.SCRIPT or (kind == flv.AUDIO and body == _AAC_HEADER_TO_COME):
                continue
            self._last_media = self._loop.time()
            if kind == flv.VIDEO:
                live.packager.video(timestamp, body)
            else:
                live.packager.audio(timestamp, body)


class SrtServer:
    """`prepare` runs in each ffmpeg before the program does (a `preexec_fn`)."""

    def __init__(
        self,
        authority: PublishAuthority,
        catalogue: Catalogue,
        settings: OriginSettings,
        prepare: Callable[[], None] | None,
    ) -> None:
        self.authority = authority
        self.catalogue = catalogue
        self.settings = settings
        self.stopping = False
        self._prepare = prepare
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, host: str, ports: Iterable[int], passphrase: str | None = None) -> bool:
        """Listen. False, with the reason in the log, when this machine has no ffmpeg that can."""
        try:
            ffmpeg = await find_ffmpeg()
        except OSError as e:
            log.warning("srt_off", reason=f"{e}; install one with SRT and start the hub again")
            return False
        loop = asyncio.get_running_loop()
        for port in ports:
            listener = Listener(ffmpeg, host, port, passphrase)
            self._tasks.append(loop.create_task(self._tend(listener), name=f"srt {port}"))
        return True

    async def _tend(self, listener: Listener) -> None:
        pause, port = PAUSE_FIRST_S, listener.port
        while not self.stopping:
            accepted = False
            try:
                encoder = _Encoder(self, await listen(listener, self._prepare))
                reason = await encoder.run()
                accepted = encoder.accepted
                event = "srt_closed" if accepted else "srt_refused"
                log.info(event, port=port, reason=reason, ffmpeg=encoder.complaints)
            except (OSError, SubprocessError) as e:
                log.warning("srt_not_listening", port=port, reason=str(e))
            except Exception:  # a port does not stay closed for what went wrong with one encoder
                log.exception("srt_failed", port=port)
            pause = PAUSE_FIRST_S if accepted else min(2 * pause, PAUSE_MAX_S)
            if not self.stopping:
                await asyncio.sleep(pause)

    def stop_listening(self) -> None:
        """Accept nobody from now on."""
        self.stopping = True

    async def close(self) -> None:
        """Let go of every encoder, and end every ffmpeg."""
        self.stop_listening()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
