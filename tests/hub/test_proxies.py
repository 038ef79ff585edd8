"""Who says where a viewer is: the proxies that the operator named, and nobody else."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from hub.proxies import TrustedProxies

TRUSTED = "127.0.0.1,::1,10.1.0.0/16"


class Hub:
    """Answers nothing, and keeps where each request came from."""

    def __init__(self) -> None:
        self.clients: list[str] = []
        self.believed: list[bool] = []
        self._app = TrustedProxies(self._answer, TRUSTED, self.believed.append)

    async def _answer(self, scope: Any, _receive: Any, _send: Any) -> None:
        self.clients.append(scope["client"][0])

    def seen(self, peer: str, *said: str) -> str:
        headers = [(b"host", b"hub"), *((b"x-forwarded-for", text.encode()) for text in said)]
        scope = {"type": "http", "client": (peer, 4000), "headers": headers, "scheme": "http"}
        asyncio.run(self._app(scope, None, None))
        return self.clients[-1]


@pytest.mark.parametrize("proxy", ["127.0.0.1", "::1", "10.1.2.3"])
def test_a_named_proxy_says_for_whom_it_asks(proxy: str) -> None:
    hub = Hub()
    assert hub.seen(proxy, "192.0.2.7") == "192.0.2.7"
    assert hub.believed == [True]


@pytest.mark.parametrize("stranger", ["192.0.2.1", "10.2.0.1", "2001:db8::1"])
def test_nobody_else_is_believed(stranger: str) -> None:
    hub = Hub()
    assert hub.seen(stranger, "192.0.2.7") == stranger
    assert hub.believed == [False]


def test_what_a_viewer_put_before_the_proxys_own_word_does_not_count() -> None:
    hub = Hub()
    assert hub.seen("127.0.0.1", "198.51.100.1, 192.0.2.7") == "192.0.2.7"
    assert hub.seen("127.0.0.1", "198.51.100.1", "192.0.2.7") == "192.0.2.7"
    assert hub.seen("127.0.0.1", "198.51.100.1, 192.0.2.7, 10.1.2.3") == "192.0.2.7"


def test_a_request_without_the_header_is_its_peers_and_not_counted() -> None:
    hub = Hub()
    assert [hub.seen(peer) for peer in ("127.0.0.1", "192.0.2.1")] == ["127.0.0.1", "192.0.2.1"]
    assert hub.believed == []


def test_who_is_not_believed_is_named_once_a_minute_however_often_they_come() -> None:
    hub = Hub()
    with capture_logs() as lines:
        for peer in ("192.0.2.1", "192.0.2.1", "192.0.2.2", "127.0.0.1"):
            hub.seen(peer, "198.51.100.1")
    assert [line["peer"] for line in lines] == ["192.0.2.1"]
    assert "STREAMRP2P_TRUSTED_PROXIES" in lines[0]["event"]
