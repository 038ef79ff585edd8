"""The watch page in a real Chromium: it plays, signs, and survives the friend's laptop."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from stand_in import Hub, Node

from ledger.receipt import fold_digests, segment_digest

pytestmark = pytest.mark.browser
PHONE = {"width": 390, "height": 844}

# How long the picture stood still, measured on every frame; started before the page's own scripts.
MEASURE = """
window.stalls = []; window.faults = [];
addEventListener("securitypolicyviolation", (e) => window.faults.push(`${e.violatedDirective} ${e.blockedURI}`));
let last = 0, since = 0;
setInterval(() => {
  const video = document.querySelector("video");
  if (!video || !video.currentTime) return;
  const now = performance.now();
  if (video.currentTime !== last) {
    if (since && now - since > 250) window.stalls.push(now - since);
    last = video.currentTime; since = now;
  }
}, 50);
"""


@pytest.fixture
def page(browser: Browser, hub: Hub) -> Iterator[Page]:
    context = browser.new_context(viewport=PHONE, device_scale_factor=2)
    context.add_init_script(MEASURE)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{hub.url}/watch/main")
    yield page
    assert errors == []
    assert page.evaluate("window.faults") == []
    context.close()


def until(condition: Callable[[], bool], timeout_s: float, what: str, page: Page) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, what
        page.wait_for_timeout(50)


def played_s(page: Page) -> float:
    return float(page.evaluate("document.querySelector('video').currentTime"))


def test_the_page_plays_signs_for_what_arrived_and_says_who_carries_it(
    page: Page, hub: Hub, node: Node
) -> None:
    until(lambda: played_s(page) > 0.5, 15, "the video starts", page)
    start_s = played_s(page)
    page.wait_for_timeout(3_000)
    assert played_s(page) - start_s > 2
    assert page.inner_text("#carrier") == "Berta's attic"
    assert page.inner_text("#viewers") == "3"
    assert page.inner_text("#state") == "Live"
    until(lambda: len(node.receipts) >= 1, 12, "a receipt arrives at the node", page)

    (ticket,) = hub.tickets.values()
    receipt = node.receipts[-1]
    assert receipt.verified_by(ticket.ticket.viewer_key)
    assert receipt.receipt.ticket_hash == ticket.ticket.hash
    claimed = receipt.receipt.sequences()
    assert set(claimed) <= set(node.served)
    assert len(claimed) >= 5
    digests = (segment_digest(ticket.ticket.nonce, node.media[s]) for s in claimed)
    assert receipt.receipt.digest == fold_digests(digests)
    assert hub.from_hub == []
    until(lambda: page.inner_text("#receipts") != "0", 5, "the page counts its receipts", page)

    before = hub.world.ledger.size()
    page.goto("about:blank")  # the page closes: its last receipt goes to the hub
    until(lambda: hub.world.ledger.size() > before, 5, "the receipt of the closed page", page)
    verdict = hub.world.ledger.read(before, 1)[0].event
    assert [j.verdict for j in verdict.judged] == ["accepted"]  # type: ignore[attr-defined]
    assert verdict.judged[0].units >= len(claimed)  # type: ignore[attr-defined]
    page.goto(f"{hub.url}/watch/main")  # for the checks of the fixture


@pytest.mark.parametrize("how", ["asleep", "killed"])
def test_a_node_that_goes_costs_no_more_than_a_blink(page: Page, hub: Hub, node: Node, how: str) -> None:
    until(lambda: played_s(page) > 2, 15, "the video starts", page)
    page.evaluate("window.stalls = []")
    before = hub.world.ledger.size()
    if how == "asleep":
        node.asleep = True
    else:
        node.stop()
    gone_s = played_s(page)
    page.wait_for_timeout(7_000)
    stalls = page.evaluate("window.stalls")
    assert played_s(page) - gone_s > 6
    assert max(stalls, default=0) < 500, stalls
    assert len(hub.from_hub) >= 4
    assert page.inner_text("#carrier") == "the hub itself"
    assert hub.world.ledger.size() > before, "the receipts for the node that went are at the hub"
    node.asleep = False


def test_the_page_fits_a_phone(page: Page, hub: Hub, tmp_path: Path) -> None:
    until(lambda: played_s(page) > 0.5, 15, "the video starts", page)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    box = page.locator(".player").bounding_box()
    assert box is not None
    assert box["width"] == PHONE["width"]
    page.screenshot(path=tmp_path / "watch.png")


def test_a_viewer_without_signatures_still_sees_the_stream(browser: Browser, hub: Hub) -> None:
    context = browser.new_context(viewport=PHONE)
    context.add_init_script("crypto.subtle.generateKey = () => Promise.reject(new Error('NotSupported'))")
    page = context.new_page()
    page.goto(f"{hub.url}/watch/main")
    until(lambda: played_s(page) > 0.5, 15, "the video starts", page)
    assert page.inner_text("#receipts") == "–"
    context.close()


def test_a_page_that_waits_says_that_the_hub_is_away_and_goes_on_when_it_is_back(
    browser: Browser, hub: Hub
) -> None:
    context = browser.new_context(viewport=PHONE)
    page = context.new_page()
    for path in ("**/live/**", "**/api/**"):
        page.route(path, lambda route: route.abort())
    page.goto(f"{hub.url}/watch/main")
    page.locator("#waiting-title", has_text="The hub does not answer").wait_for(timeout=15_000)
    assert page.inner_text("#state") == "Reconnecting"
    page.unroute_all()
    until(lambda: played_s(page) > 0.5, 25, "the video starts", page)
    assert page.inner_text("#state") == "Live"
    assert page.is_hidden("#waiting")
    context.close()


def test_a_page_over_plain_http_from_another_machine_says_who_carries_it(browser: Browser, hub: Hub) -> None:
    context = browser.new_context(viewport=PHONE)
    context.add_init_script("delete Crypto.prototype.subtle; delete Crypto.prototype.randomUUID")  # as there
    page = context.new_page()
    page.goto(f"{hub.url}/watch/main")
    until(lambda: played_s(page) > 0.5, 15, "the video starts", page)
    assert page.inner_text("#receipts") == "–"
    assert page.inner_text("#carrier") == "Berta's attic"
    context.close()
