"""The player in somebody else's page, on another site than the hub, as docs/viewers.md says: word for word."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from stand_in import Hub, Node, Served

pytestmark = pytest.mark.browser
DOCS = Path(__file__).parents[2] / "docs" / "viewers.md"
FAULTS = """
window.faults = [];
addEventListener("securitypolicyviolation", (e) => window.faults.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


@pytest.fixture
def site(hub: Hub) -> Iterator[str]:
    """Another origin, with the documented lines in its page and the documented policy in its header."""
    text = (
        DOCS.read_text("utf-8")
        .partition("## For your own site")[2]
        .replace("https://the-hub.example", hub.url)
    )
    snippet, policy = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)[:2]
    snippet = snippet.replace("viewer.start()", "window.viewer = viewer; viewer.start()")
    html = f"<!doctype html><title>My own site</title>\n{snippet}"
    policy = policy.strip().replace("'self'", "'self' 'unsafe-inline'")

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [
            (b"content-type", b"text/html"),
            (b"content-security-policy", f"default-src 'none'; {policy}".encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": html.encode()})

    served = Served(app)
    yield f"http://localhost:{served.port}/"
    served.stop()


def until(page: Page, condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        page.wait_for_timeout(100)


def test_another_site_plays_the_stream_and_its_receipts_arrive(
    browser: Browser, site: str, hub: Hub, node: Node
) -> None:
    context = browser.new_context()
    context.add_init_script(FAULTS)
    page = context.new_page()
    page.goto(site)
    until(page, lambda: page.evaluate("document.querySelector('video').currentTime > 0.5"), 15, "it plays")
    until(page, lambda: node.receipts, 15, "a receipt arrives at the node")
    state = page.evaluate("viewer.state")
    assert (state["phase"], state["signing"], state["fromHub"]) == ("playing", True, 0)
    before = hub.world.ledger.size()
    page.evaluate("viewer.stop()")
    until(page, lambda: hub.world.ledger.size() > before, 8, "the last receipt arrives at the hub")
    assert page.evaluate("window.faults") == []
    context.close()
