"""The watch page on a real hub with real nodes: it waits, plays, signs, and outlives a node, the hub and the stream."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parents[1] / "media"))

from house import SLUG, House
from programs import plain_source, pushing

pytestmark = [pytest.mark.browser, pytest.mark.ffmpeg, pytest.mark.slow]
# For how long, in ms, the picture stood still at most, after it had begun to move.
MEASURE = """
window.longest = 0; window.faults = [];
addEventListener("securitypolicyviolation", (e) => window.faults.push(`${e.violatedDirective} ${e.blockedURI}`));
let last = 0, since = 0;
setInterval(() => {
  const at = document.querySelector("video")?.currentTime ?? 0, now = performance.now();
  if (at === last) { if (since) window.longest = Math.max(window.longest, now - since); }
  else { since = last ? now : 0; last = at; }
}, 50);
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[House]:
    folder = Path(tempfile.mkdtemp(prefix="sp2p-page-"))
    folder.chmod(0o711)
    house = House(folder)
    try:
        house.open()
        for name in ("Berta", "Carl"):
            house.start_node(house.invite(name))
        yield house
    finally:
        house.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def page(browser: Browser, hub: House) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.add_init_script(MEASURE)
    page = context.new_page()
    yield page
    assert page.evaluate("window.faults") == []
    context.close()


def until(page: Page, condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        page.wait_for_timeout(100)


def played_s(page: Page) -> float:
    return float(page.evaluate("document.querySelector('video').currentTime"))


def accepted(hub: House) -> int:
    """Receipts of signing viewers that the log says are accepted."""
    with hub.ledger() as ledger:
        events = [r.event for r in ledger.read(0, 10_000)]
    return sum(
        judged.verdict == "accepted"
        for event in events
        if type(event).__name__ == "SegmentsServed"
        for judged in event.judged  # type: ignore[attr-defined]
    )


def test_a_viewer_from_before_the_stream_until_after_it(page: Page, hub: House) -> None:
    url = f"rtmp://127.0.0.1:{hub.rtmp_port}/live/{hub.keys[SLUG]}"
    source, log = plain_source(hub.folder), hub.folder / "push.log"
    refused: list[str] = []
    page.on("response", lambda r: refused.append(r.url) if r.status >= 400 else None)
    page.goto(f"{hub.base}/watch/{SLUG}")
    assert "not live" in page.inner_text("#waiting")
    page.wait_for_timeout(2_000)
    assert refused == [], "a page that waits asks for nothing it cannot have"

    with pushing(source, url, log):
        until(page, lambda: played_s(page) > 1, 20, "the page starts by itself")
        until(page, lambda: page.inner_text("#carrier") in ("Berta", "Carl"), 15, "a friend carries it")
        until(page, lambda: accepted(hub) > 0, 25, "receipts are judged accepted")

        friend = next(f for f in hub.friends if f.name == page.inner_text("#carrier"))
        assert friend.actor is not None
        page.evaluate("window.longest = 0")
        before_s = played_s(page)
        friend.actor.kill()
        until(page, lambda: played_s(page) > before_s + 8, 20, "it plays on without the node")
        assert page.evaluate("window.longest") < 2_000

        assert hub.kill("origin")
        before_s = played_s(page)
        until(page, lambda: played_s(page) > before_s + 12, 45, "it plays on with the hub that started again")

    until(page, lambda: page.locator("#waiting").is_visible(), 40, "the page says that the stream is over")
    with pushing(source, url, log):
        page.evaluate("window.longest = 0")
        until(page, lambda: page.locator("#waiting").is_hidden(), 25, "the page starts again by itself")
        before_s = played_s(page)
        until(page, lambda: played_s(page) > before_s + 1, 15, "the picture moves")
