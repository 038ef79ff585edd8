"""A viewer that behaves like VLC: master playlist, media playlist, segments; nothing signed.

Invariant: it asks only for URLs a playlist showed it, and its only answer to a failure is to look at the playlist
again: whoever steers it does so there.
"""

from relay.viewers.player import MAX_PLAYLIST_BYTES, MAX_SEGMENT_BYTES, FetchError, Player, ViewerError
from relay.viewers.playlist import Listed, MediaPlaylist, PlaylistError, parse_master, ticket_of


class PlainViewer(Player):
    """`patience_s`: how long one segment may take before the playlist is looked at again."""

    def __init__(self, hub_url: str, slug: str, *, from_start: bool = False, patience_s: float = 4.0) -> None:
        super().__init__(hub_url, slug, from_start=from_start)
        self._patience_s = patience_s
        self.media_url = ""

    async def _open(self) -> None:
        master = f"{self.hub_url}/live/{self.slug}.m3u8"
        try:
            text = (await self._get(master, MAX_PLAYLIST_BYTES)).decode("utf-8", "replace")
            self.media_url = parse_master(text, master)
        except (FetchError, PlaylistError) as e:
            raise ViewerError(f"cannot open {self.slug}: {e}") from e

    async def _playlist(self) -> MediaPlaylist:
        try:
            return await self._get_playlist(self.media_url)
        except FetchError as e:
            if e.status in (
                403,
                404,
                410,
            ):  # the session has expired: open the address anew, as a person would
                try:
                    await self._open()
                except ViewerError as refused:
                    raise FetchError(str(refused)) from refused
            raise

    async def _segment(self, listed: Listed) -> bytes | None:
        try:
            data = await self._get(listed.url, MAX_SEGMENT_BYTES, patience_s=self._patience_s)
        except FetchError:
            self.stats.fallbacks += 1
            return None
        if ticket_of(listed.url):
            self.stats.from_node += 1
        else:
            self.stats.from_hub += 1
        return data
