"""What can be answered without asking anybody: playlists and segments to sessions that the hub knows, as nearly all
are.

Invariant: an answer from here is the one that `MediaApp` would have given; where nothing is answered nothing has
happened, and the request goes the general way.
"""

import base64
import functools
import re
from collections.abc import Callable
from typing import Final
from uuid import UUID

from ledger.ids import SLUG
from relay.answers import NO_STORE, UUID_TEXT, Header, Respond, Scope, header, header_lines, peer_ip, uuid_of
from relay.origin import playlist
from relay.origin.live import Catalogue, Live
from relay.origin.seats import Seats
from relay.origin.store import RenditionStore
from relay.origin.viewers import Viewers
from relay.ports import Assignment, Steering, Unknown

MIME: Final = {"ts": b"video/mp2t", "m4s": b"video/mp4"}
SEGMENT_CACHE: Final = (b"cache-control", b"public, max-age=60, immutable")
_ASKED: Final = re.compile(rf"/live/({SLUG})/({UUID_TEXT})/(?:index\.m3u8|(\d{{1,18}})\.(?:ts|m4s))")
_PLAYLIST: Final = header_lines(playlist.CONTENT_TYPE, (NO_STORE,))


def is_listing(live: Live) -> bool:
    """Whether its playlist can be shown."""
    store = live.rendition
    return store is not None and bool(store.listed) and (not store.ended or not live.on_air)


def segment_headers(etag: bytes, sha256: bytes) -> tuple[Header, ...]:
    digest = b"sha-256=:" + base64.b64encode(sha256) + b":"  # RFC 9530
    return ((b"etag", etag), (b"repr-digest", digest), SEGMENT_CACHE)


@functools.lru_cache(4096)
def _segment_lines(extension: str, etag: bytes, sha256: bytes) -> bytes:
    """The same for all who get the segment."""
    return header_lines(MIME[extension], segment_headers(etag, sha256))


def uri_for(
    steering: Steering,
    base: str,
    session: UUID,
    store: RenditionStore,
    assignment: Assignment | None,
    query: str = "",
) -> Callable[[int], str]:
    """Where a session has each segment from; `base` is its place at the hub."""
    ending = f".{store.extension}"
    if assignment is None:
        return lambda sequence: f"{base}{sequence}{ending}{query}"
    ticket = assignment.ticket.ticket
    at_node = f"{assignment.node_url}/segments/{store.rendition_id}/"
    with_ticket = f"{ending}?t={assignment.ticket.encode_url()}"

    def uri(sequence: int) -> str:
        if ticket.covers(sequence) and not steering.pointed_at_hub(session, sequence):
            return f"{at_node}{sequence}{with_ticket}"
        return f"{base}{sequence}{ending}"

    return uri


class AtOnce:
    def __init__(
        self,
        catalogue: Catalogue,
        steering: Steering,
        viewers: Viewers,
        seats: Seats,
        sent: Callable[[int], None],
    ) -> None:
        """`sent` is told the bytes of each segment."""
        self._catalogue = catalogue
        self._steering = steering
        self._viewers = viewers
        self._seats = seats
        self._sent = sent

    def answer(self, scope: Scope, respond: Respond, now_s: float) -> bool:
        """Answer a GET. False: not from here. `now_s`: loop time."""
        asked = _ASKED.fullmatch(scope["path"])
        if asked is None or scope["query_string"]:
            return False
        slug, session = asked[1], uuid_of(asked[2])
        live = self._catalogue.lives.get(slug)
        if live is None or live.rendition is None or self._steering.known_slug(session) != slug:
            return False
        if asked[3] is None:
            return self._playlist(scope, respond, now_s, live, session)
        return self._segment(scope, respond, now_s, live, session, int(asked[3]))

    def _playlist(self, scope: Scope, respond: Respond, now_s: float, live: Live, session: UUID) -> bool:
        store = live.rendition
        new = not self._viewers.knows(session)
        if store is None or not is_listing(live) or self._seats.concern(session, new=new):
            return False
        try:
            assignment = self._assignment(session, store)
        except Unknown:
            return False
        base = scope["path"].removesuffix("index.m3u8")
        if assignment is None:
            body = playlist.at_hub(store, base)
        else:
            body = playlist.media(store, uri_for(self._steering, base, session, store, assignment))
        if not respond(200, _PLAYLIST, len(body), body):
            return False
        self._viewers.saw(live.slug, session, now_s)
        self._steering.observe_poll(session, store.sequences, peer_ip(scope))
        return True

    def _assignment(self, session: UUID, store: RenditionStore) -> Assignment | None:
        if store.ended:
            return None
        head = store.listed[-1].segment.sequence
        return self._steering.known_assignment(session, store.rendition_id, head)

    def _segment(
        self, scope: Scope, respond: Respond, now_s: float, live: Live, session: UUID, sequence: int
    ) -> bool:
        store = live.rendition
        stored = store.get(sequence) if store is not None else None
        if store is None or stored is None or header(scope, b"if-none-match") is not None:
            return False
        lines, body = _segment_lines(store.extension, stored.etag, stored.segment.sha256), stored.body
        if not respond(200, lines, body.length, body):
            return False
        self._viewers.saw(live.slug, session, now_s)
        self._sent(body.length)
        self._steering.observe_fetch(session, sequence, peer_ip(scope))
        return True
