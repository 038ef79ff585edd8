"""The friend's page, the audit page and the home page in a real Chromium at a phone's width."""

from pathlib import Path
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, Page
from stand_in import Hub

from api.directory import Role
from ledger.ids import node_id

pytestmark = pytest.mark.browser
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def page(browser: Browser):
    context = browser.new_context(viewport=PHONE, device_scale_factor=2)
    yield context.new_page()
    context.close()


def test_a_friend_sees_what_they_earned_and_why(page: Page, hub: Hub, tmp_path: Path) -> None:
    friend_id = uuid4()
    hub.world.directory.name_person(friend_id, "Berta")
    token = hub.world.token(Role.FRIEND, friend_id)["Authorization"].removeprefix("Bearer ")
    hub.world.earn(friend_id, node_id(hub.node.key.public_key), 1_234_560)

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
    # Nobody touches the page: the next line comes by itself, and once.
    hub.world.earn(friend_id, node_id(hub.node.key.public_key), 1_000_000, epoch=1)
    page.locator("#pending", has_text="2.23456").wait_for()
    page.locator("#lines tr:first-child", has_text="1.00").wait_for()
    assert page.locator("#lines tr").count() == 2
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
