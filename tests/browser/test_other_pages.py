"""The friend's page, the audit page and the home page in a real Chromium at a phone's width."""

from pathlib import Path
from uuid import UUID, uuid4

import pytest
from playwright.sync_api import Browser, Page
from stand_in import Hub

from api.directory import Role
from ledger.aggregates.book import Book
from ledger.events import Posting, SettlementLine, Transfer
from ledger.ids import BOOK_ID, node_id
from ledger.money import budget_account, friend_account
from ledger.services import budgets
from ledger.settlement import Page as SettlementPage

pytestmark = pytest.mark.browser
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def page(browser: Browser):
    context = browser.new_context(viewport=PHONE, device_scale_factor=2)
    yield context.new_page()
    context.close()


def earn(hub: Hub, friend_id: UUID, amount_micro: int) -> None:
    """One settled line for the friend."""
    world, stream_id = hub.world, hub.world.stream_id
    at_us = world.now_us
    budgets.deposit(world.ledger, stream_id, amount_micro=50_000_000, reference="first", at_us=at_us)
    line = SettlementLine(
        stream_id,
        node_id(hub.node.key.public_key),
        friend_id,
        "delivery",
        30,
        123_456_789,
        10_000,
        1,
        amount_micro,
    )
    postings = (
        Posting(budget_account(stream_id), -amount_micro),
        Posting(friend_account(friend_id, "pending"), amount_micro),
    )
    book = world.ledger.load(Book, BOOK_ID)
    pages = [SettlementPage(lines=(line,), transfers=(Transfer("settlement", postings),))]
    book.settle_epoch(0, log_to=world.ledger.size(), pages=pages, at_us=at_us)
    world.ledger.save(book)
    world.project()


def test_a_friend_sees_what_they_earned_and_why(page: Page, hub: Hub, tmp_path: Path) -> None:
    friend_id = uuid4()
    hub.world.directory.name_person(friend_id, "Berta")
    token = hub.world.token(Role.FRIEND, friend_id)["Authorization"].removeprefix("Bearer ")
    earn(hub, friend_id, 1_234_560)

    page.goto(f"{hub.url}/friend")
    page.fill("#token", "sp2p_friend_wrong")
    page.click("button[type=submit]")
    page.wait_for_function("document.querySelector('#message').textContent.includes('token')")
    page.goto("about:blank")
    page.goto(f"{hub.url}/friend#{token}")
    page.wait_for_selector("#statement:visible")
    assert page.inner_text("#name") == "Thank you, Berta"
    assert page.inner_text("#pending") == "1.23456"
    assert page.inner_text("#available") == "0.00"
    row = page.inner_text("#lines tr")
    assert "delivered" in row
    assert "123.5 MB" in row
    assert "1.23456" in row
    assert token not in page.url
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=tmp_path / "friend.png")


@pytest.mark.parametrize("path", ["/", "/audit", "/watch/none"])
def test_pages_fit_a_phone(page: Page, hub: Hub, tmp_path: Path, path: str) -> None:
    hub.world.log_folder.joinpath("checkpoint").write_text(
        f"hub.test/log\n120\n{'A' * 43}=\n\n— hub {'B' * 90}\n"
    )
    page.goto(hub.url + path)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=tmp_path / "page.png")
