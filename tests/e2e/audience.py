"""Tickets and receipts in the hands of people who mean no good."""

import re
from dataclasses import dataclass
from urllib.parse import urljoin

from house import SLUG, House

from ledger.keys import KeyPair
from ledger.ticket import SignedTicket

_SEGMENT = re.compile(r"(http\S+/segments/\S+/(\d+)\.ts)\?t=([A-Za-z0-9_-]+)")


@dataclass(frozen=True)
class Offer:
    """A segment that a playlist offers at a node."""

    url: str  # without its ticket
    sequence: int
    signed: SignedTicket

    @property
    def node_url(self) -> str:
        return self.url.partition("/segments/")[0]

    def with_ticket(self, text: str | None = None) -> str:
        return f"{self.url}?t={text if text is not None else self.signed.encode_url()}"


def offers(house: House, viewer: KeyPair, slug: str = SLUG) -> list[Offer]:
    """What a new session's playlist offers a signing viewer."""
    body = {"stream": slug, "viewer_key": viewer.public_key.hex()}
    answer = house.ask("POST", "/api/sessions", json=body)
    assert answer.status_code == 201, answer.text
    text = house.ask("GET", urljoin("/", answer.json()["playlist_url"].removeprefix(house.base))).text
    return [Offer(url, int(number), SignedTicket.decode_url(t)) for url, number, t in _SEGMENT.findall(text)]
