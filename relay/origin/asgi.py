"""The paths of media over HTTP, as a bare ASGI application (docs/api.md lists them).

Invariant: a media playlist names only segments that are recorded and still kept, and each of its URIs points either at
the hub or at a node whose ticket covers that very segment. Steering that is slow or away costs nobody the playlist:
the hub then serves the segments itself.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from typing import Final
from uuid import UUID

import structlog

from ledger.ids import SLUG
from ledger.request import RequestAuthError, verify_request
from relay.answers import (
    CORS,
    METHODS,
    NO_STORE,
    UUID_TEXT,
    Receive,
    Scope,
    Send,
    answer,
    header,
    peer_ip,
    problem,
    uuid_of,
)
from relay.http import WRITE_NOW
from relay.origin import playlist
from relay.origin.at_once import (
    MIME,
    SEGMENT_CACHE,
    AtOnce,
    is_listing,
    segment_headers,
    uri_for,
)
from relay.origin.live import Catalogue, Live
from relay.origin.redirects import VIA_HUB, Redirects, in_a_page
from relay.origin.seats import Seats, reload_of
from relay.origin.settings import OriginSettings
from relay.origin.stills import Stills
from relay.origin.store import RenditionStore, Stored
from relay.origin.viewers import Viewers
from relay.origin.vod import VodApp
from relay.ports import Assignment, Steering, Unavailable, Unknown

log = structlog.get_logger()
_MASTER: Final = re.compile(rf"/live/({SLUG})\.m3u8")
_STILL: Final = re.compile(rf"/live/({SLUG})\.jpg")
_FLV: Final = re.compile(rf"/live/({SLUG})\.flv")
_MEDIA: Final = re.compile(rf"/live/({SLUG})/({UUID_TEXT})/index\.m3u8")
_SEGMENT: Final = re.compile(rf"/live/({SLUG})/({UUID_TEXT})/(\d{{1,18}})\.(?:ts|m4s)")
_PART: Final = re.compile(rf"/live/({SLUG})/({UUID_TEXT})/(\d{{1,18}})\.(\d{{1,6}})\.m4s")
_INIT: Final = re.compile(rf"/live/({SLUG})/({UUID_TEXT})/init-([0-9a-f]{{16}})\.mp4")
_PULL: Final = re.compile(rf"/segments/({UUID_TEXT})/(\d{{1,18}})\.(?:ts|m4s)")
MAX_WAITING: Final = 8
_RETRY: Final = (b"retry-after", b"2")
_VIA_HUB: Final = VIA_HUB[1:].encode()


class MediaApp:
    """`now_us`: wall clock, Unix microseconds (only to check the time of signed requests)."""

    def __init__(
        self, catalogue: Catalogue, steering: Steering, settings: OriginSettings, now_us: Callable[[], int]
    ) -> None:
        self._catalogue = catalogue
        self._steering = steering
        self._settings = settings
        self._now_us = now_us
        self.viewers = Viewers(settings.viewer_seen_s)
        self._seats = Seats(settings.low_latency_viewers)
        self._redirects = Redirects()
        self._waiting: Counter[UUID] = Counter()  # requests for parts to come, by session
        self._stills = Stills(settings.still_every_s) if settings.still_every_s else None
        self._vod = VodApp(settings.recordings) if settings.recordings is not None else None
        self.sent_bytes = 0
        # Answers a GET in place. False: it is to be asked as usual, and nothing has happened.
        self.at_once = AtOnce(catalogue, steering, self.viewers, self._seats, self._sent).answer

    def _sent(self, count: int) -> None:
        self.sent_bytes += count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        if self._vod is not None and path.startswith("/vod/"):
            await self._vod(scope, receive, send)
        elif method == "OPTIONS":
            allowed = ((b"access-control-allow-methods", METHODS), (b"access-control-allow-headers", b"*"))
            await answer(
                scope, send, 204, b"text/plain", b"", (*allowed, (b"access-control-max-age", b"86400"))
            )
        elif method not in ("GET", "HEAD"):
            await problem(
                scope, send, 405, "Method not allowed", "media is read only", ((b"allow", METHODS),)
            )
        elif match := _MEDIA.fullmatch(path):
            await self._media(scope, send, match[1], match[2])
        elif match := _SEGMENT.fullmatch(path):
            await self._segment(scope, send, match[1], uuid_of(match[2]), int(match[3]))
        elif match := _PART.fullmatch(path):
            await self._part(scope, send, match[1], uuid_of(match[2]), int(match[3]), int(match[4]))
        elif match := _INIT.fullmatch(path):
            await self._init(scope, send, match[1], uuid_of(match[2]), match[3])
        elif match := _PULL.fullmatch(path):
            await self._pull(scope, send, uuid_of(match[1]), int(match[2]))
        elif match := _MASTER.fullmatch(path):
            await self._master(scope, send, match[1])
        elif match := _FLV.fullmatch(path):
            await self._flv(scope, receive, send, match[1])
        elif match := _STILL.fullmatch(path):
            await self._still(scope, send, match[1])
        else:
            await problem(scope, send, 404, "Not found", "there is no media at this address")

    # --- playlists ---------------------------------------------------------------------------------------------------

    async def _ready(self, slug: str, *, returning: bool = False) -> RenditionStore | None:
        """The stream's rendition once it lists something, waiting a little for a stream that is starting. `returning`:
        waiting also where nobody publishes, for a player that plays already."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.playlist_wait_s
        while (live := self._catalogue.lives.get(slug)) is not None or returning:
            store = live.rendition if live is not None else None
            if live is not None:
                if is_listing(live):
                    return store
                if not live.on_air:
                    return None
            left = deadline - loop.time()
            if left <= 0 or self._catalogue.closed:
                return None
            if store is None or store.ended:
                await self._catalogue.wait_changed(left)
            else:
                await store.wait(lambda s=store: bool(s.listed) or s.ended, left)  # type: ignore[misc]
        return None

    async def _not_live(self, scope: Scope, send: Send, slug: str) -> None:
        live = self._catalogue.lives.get(slug)
        if live is not None and live.on_air:
            detail = f"the stream {slug!r} is about to start; try again in a moment"
        else:
            detail = f"no stream {slug!r} is live at the moment"
        await problem(scope, send, 404, "Not live", detail, (_RETRY,))

    async def _master(self, scope: Scope, send: Send, slug: str) -> None:
        store = await self._ready(slug)
        if store is None or store.ended:
            await self._not_live(scope, send, slug)
            return
        try:
            session = await self._steering.open_session(slug, peer_ip(scope))
        except Unavailable:
            detail = "the hub cannot open a session at the moment; try again"
            await problem(scope, send, 503, "Try again", detail, (_RETRY,))
            return
        if session is None:
            await self._not_live(scope, send, slug)
            return
        body = playlist.master(store, slug, session, VIA_HUB if in_a_page(scope) else "")
        await answer(scope, send, 200, playlist.CONTENT_TYPE, body, (NO_STORE,))

    async def _media(self, scope: Scope, send: Send, slug: str, session_text: str) -> None:
        session = uuid_of(session_text)
        if not await self._session_is_for(scope, send, slug, session):
            return
        # A hub that has just started again has its players back before its publishers. VLC gives up for good after
        # three playlists in a row that it cannot read.
        store = await self._ready(slug, returning=True)
        if store is None:
            await self._not_live(scope, send, slug)
            return
        now_s = asyncio.get_running_loop().time()
        new = not self.viewers.knows(session)
        self.viewers.saw(slug, session, now_s)
        wanted = reload_of(scope["query_string"])
        if isinstance(wanted, str):
            await problem(scope, send, 400, "Bad request", wanted)
            return
        parts = self._seats.take(session, knows=wanted is not None, new=new, now_s=now_s)
        if parts and wanted is not None and not await self._reached(scope, send, session, store, wanted):
            return
        via_hub = _via_hub(scope)
        assignment = None if store.ended or via_hub else await self._assignment(session, store)
        if assignment is None and not parts and not via_hub:
            body = playlist.at_hub(store, f"/live/{slug}/{session_text}/")
        else:
            query = VIA_HUB if via_hub else ""
            uri = uri_for(self._steering, f"/live/{slug}/{session_text}/", session, store, assignment, query)
            body = playlist.media(store, uri, parts=parts)
        if scope["method"] == "GET" and not (parts and wanted is not None):
            # Who plays parts has them from the hub: nothing that is listed here may be claimed for a node.
            self._steering.observe_poll(session, store.sequences, peer_ip(scope))
        await answer(scope, send, 200, playlist.CONTENT_TYPE, body, (NO_STORE,))

    async def _reached(
        self,
        scope: Scope,
        send: Send,
        session: UUID,
        store: RenditionStore,
        wanted: tuple[int, int | None],
    ) -> bool:
        """Wait until what the player wants is listed; answers the request when it is not."""
        sequence, index = wanted
        if sequence > store.next_sequence + 1:
            await problem(scope, send, 400, "Bad request", "that segment is too far ahead")
            return False
        if not await self._comes(session, store, sequence, index, 3.0 * store.target_duration_s):
            await problem(scope, send, 503, "Try again", "nothing new has come", (_RETRY,))
            return False
        return True

    async def _comes(
        self, session: UUID, store: RenditionStore, sequence: int, index: int | None, timeout_s: float
    ) -> bool:
        """Wait for a segment or a part. What a session asks for beyond a few at a time is not waited for."""
        if store.reaches(sequence, index):
            return True
        if self._waiting[session] >= MAX_WAITING:
            return False
        self._waiting[session] += 1
        try:
            return await store.wait(lambda: store.reaches(sequence, index), timeout_s)
        finally:
            self._waiting[session] -= 1
            if not self._waiting[session]:
                del self._waiting[session]

    async def _assignment(self, session: UUID, store: RenditionStore) -> Assignment | None:
        head = store.listed[-1].segment.sequence
        try:
            return self._steering.known_assignment(session, store.rendition_id, head)
        except Unknown:
            pass
        try:
            async with asyncio.timeout(self._settings.steering_timeout_s):
                return await self._steering.assignment(session, store.rendition_id, head)
        except (Unavailable, TimeoutError) as e:
            log.warning("steering_unavailable", error=type(e).__name__)
            return None

    async def _session_is_for(self, scope: Scope, send: Send, slug: str, session: UUID) -> bool:
        """Whether the session is alive and belongs to the stream; answers the request when not."""
        try:
            if await self._steering.session_slug(session) == slug:
                return True
        except Unavailable:
            await problem(
                scope, send, 503, "Try again", "the hub cannot look up sessions at the moment", (_RETRY,)
            )
            return False
        detail = "this playback session is over; open the stream's address again"
        await problem(scope, send, 404, "No such session", detail)
        return False

    # --- segments ----------------------------------------------------------------------------------------------------

    async def _segment(self, scope: Scope, send: Send, slug: str, session: UUID, sequence: int) -> None:
        if not await self._session_is_for(scope, send, slug, session):
            return
        store = self._rendition(slug)
        stored = None
        if store is not None:
            stored = await store.wait_for_segment(sequence, self._settings.segment_wait_s)
        if store is None or stored is None:
            await problem(scope, send, 404, "No such segment", "it is over, or not there yet")
            return
        self.viewers.saw(slug, session, asyncio.get_running_loop().time())
        node = await self._node_for(session, store, sequence) if _via_hub(scope) else None
        if node is not None:
            await answer(scope, send, 302, b"text/plain", b"", ((b"location", node.encode()), NO_STORE))
            return
        if await self._send_segment(scope, send, store, stored):
            self._steering.observe_fetch(session, sequence, peer_ip(scope))

    async def _node_for(self, session: UUID, store: RenditionStore, sequence: int) -> str | None:
        """Where the session may have the segment from other than here."""
        if not self._redirects.first(session, sequence) or store.ended:
            return None
        assignment = await self._assignment(session, store)
        if assignment is None:
            return None
        covered = assignment.ticket.ticket.covers(sequence)
        if not covered or self._steering.pointed_at_hub(session, sequence):
            return None
        path = f"/segments/{store.rendition_id}/{sequence}.{store.extension}"
        return f"{assignment.node_url}{path}?t={assignment.ticket.encode_url()}"

    async def _part(
        self, scope: Scope, send: Send, slug: str, session: UUID, sequence: int, index: int
    ) -> None:
        """A part, waiting for it where the playlist hints at it."""
        if not await self._session_is_for(scope, send, slug, session):
            return
        store = self._rendition(slug)
        data = None
        if store is not None:
            if self._seats.has(session) and store.next_sequence <= sequence <= store.next_sequence + 1:
                await self._comes(session, store, sequence, index, self._settings.segment_wait_s)
            data = store.chunk(sequence, index)
        if data is None:
            await problem(scope, send, 404, "No such part", "it is over, or not there yet")
            return
        self.viewers.saw(slug, session, asyncio.get_running_loop().time())
        await answer(scope, send, 200, MIME["m4s"], data, (SEGMENT_CACHE,))
        if scope["method"] == "GET":
            self.sent_bytes += len(data)

    async def _init(self, scope: Scope, send: Send, slug: str, session: UUID, name: str) -> None:
        if not await self._session_is_for(scope, send, slug, session):
            return
        store = self._rendition(slug)
        init = store.init(name) if store is not None else None
        if init is None:
            await problem(scope, send, 404, "No such file", "nothing that is listed needs it")
            return
        await answer(scope, send, 200, MIME["m4s"], init, (SEGMENT_CACHE,))

    def _rendition(self, slug: str) -> RenditionStore | None:
        live = self._catalogue.lives.get(slug)
        return live.rendition if live is not None else None

    async def _pull(self, scope: Scope, send: Send, rendition: UUID, sequence: int) -> None:
        """A node fetches a segment to serve it on (signed with its key)."""
        target = bytes(scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        authorization = header(scope, b"authorization")
        text = authorization.decode("latin-1") if authorization is not None else None
        try:
            key = verify_request(text, scope["method"], target, b"", now_s=self._now_us() // 1_000_000)
            allowed = await self._steering.node_may_fetch(key)
        except RequestAuthError as e:
            await problem(scope, send, 401, "Not signed", str(e), ((b"www-authenticate", b"Node"),))
            return
        except Unavailable:
            await problem(
                scope, send, 503, "Try again", "the hub cannot check nodes at the moment", (_RETRY,)
            )
            return
        if not allowed:
            await problem(
                scope, send, 403, "Not allowed", "this node has not joined, or is suspended or retired"
            )
            return
        store = self._catalogue.renditions.get(rendition)
        stored = None
        if store is not None:
            stored = await store.wait_for_segment(sequence, self._settings.segment_wait_s)
        if store is None or stored is None:
            await problem(scope, send, 404, "No such segment", "it is over, or not there yet")
            return
        await self._send_segment(scope, send, store, stored)

    async def _send_segment(self, scope: Scope, send: Send, store: RenditionStore, stored: Stored) -> bool:
        """Whether its bytes were sent: not for a HEAD, nor to somebody who says to have them."""
        headers = segment_headers(stored.etag, stored.segment.sha256)
        known = header(scope, b"if-none-match")
        if known is not None and stored.etag in known:
            await send({"type": "http.response.start", "status": 304, "headers": [*CORS, *headers]})
            await send({"type": "http.response.body", "body": b""})
            return False
        await answer(scope, send, 200, MIME[store.extension], stored.body, headers)
        if scope["method"] != "GET":
            return False
        self.sent_bytes += len(stored.body)
        return True

    async def _still(self, scope: Scope, send: Send, slug: str) -> None:
        live = self._catalogue.lives.get(slug)
        if self._stills is None or live is None or not live.on_air:
            await self._not_live(scope, send, slug)
            return
        self._stills.forget_but(set(self._catalogue.lives))
        jpeg = await self._stills.of(live)
        if jpeg is None:
            await problem(scope, send, 404, "No picture", "there is no picture of this stream yet", (_RETRY,))
            return
        cache = (b"cache-control", b"public, max-age=%d" % self._settings.still_every_s)
        await answer(scope, send, 200, b"image/jpeg", jpeg, (cache,))

    async def close(self) -> None:
        if self._stills is not None:
            await self._stills.close()

    # --- HTTP-FLV ----------------------------------------------------------------------------------------------------

    async def _flv(self, scope: Scope, receive: Receive, send: Send, slug: str) -> None:
        live = self._catalogue.lives.get(slug)
        if live is not None and live.on_air and not live.fanout.started:
            await self._ready(slug)
        if live is None or not live.on_air or not live.fanout.started:
            await self._not_live(scope, send, slug)
            return
        headers = [(b"content-type", b"video/x-flv"), *CORS, NO_STORE]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        await self._stream_flv(live, receive, send, (scope.get("extensions") or {}).get(WRITE_NOW))

    async def _stream_flv(
        self, live: Live, receive: Receive, send: Send, write_now: Callable[[bytes], bool] | None
    ) -> None:
        def count_and_write(data: bytes) -> bool:
            assert write_now is not None
            written = write_now(data)
            self.sent_bytes += len(data) * written
            return written

        viewer = live.fanout.join(count_and_write if write_now is not None else None)

        async def watch() -> None:
            # send() goes on "succeeding" after the client is gone: only receive() tells
            while (await receive())["type"] != "http.disconnect":
                pass
            viewer.close()
            viewer.drop()

        watcher = asyncio.get_running_loop().create_task(watch())
        try:
            while (data := await viewer.next()) is not None:
                self.sent_bytes += len(data)
                async with asyncio.timeout(self._settings.viewer_stall_s):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            log.info("flv_viewer_stalled", slug=live.slug)
        finally:
            live.fanout.leave(viewer)
            watcher.cancel()


def _via_hub(scope: Scope) -> bool:
    query = scope["query_string"]
    return bool(query) and _VIA_HUB in query.split(b"&")
