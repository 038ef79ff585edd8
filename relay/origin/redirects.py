"""Players in other people's web pages: each segment has one address, at the hub, which leads to the node.

hls.js gives up when a segment that it has seen listed is listed elsewhere, and what fails it asks for again at the same
address. So it gets addresses that last; asked for once they lead to the session's node, asked for again the hub serves.

Invariant: a session is sent to a node at most once for a segment, as far back as `MAX_REMEMBERED` redirects.
"""

from collections import OrderedDict
from typing import Final
from uuid import UUID

from relay.answers import Scope, header

MAX_REMEMBERED: Final = 100_000
VIA_HUB: Final = "?via=hub"
_BY_ITSELF: Final = b"direct"  # a player that copes with addresses that change (our own) asks so


def in_a_page(scope: Scope) -> bool:
    """Whether a browser's script asks for a master playlist (Fetch, 3.2 and Fetch Metadata)."""
    asks = header(scope, b"origin") is not None or header(scope, b"sec-fetch-mode") == b"cors"
    return asks and scope["query_string"] != _BY_ITSELF


class Redirects:
    def __init__(self) -> None:
        self._sent: OrderedDict[tuple[UUID, int], None] = OrderedDict()

    def first(self, session: UUID, sequence: int) -> bool:
        """Whether the session has not been sent elsewhere for this segment before; from now on it has."""
        name = (session, sequence)
        if name in self._sent:
            return False
        self._sent[name] = None
        if len(self._sent) > MAX_REMEMBERED:
            self._sent.popitem(last=False)
        return True
