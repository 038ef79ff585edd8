"""The friend's page, the audit page and the home page in a real Chromium at a phone's width."""

from pathlib import Path
from uuid import uuid4

import pytest
from api_world import new_key
from playwright.sync_api import Browser, Page
from stand_in import Hub

from api.directory import NodeProfile, Role
from ledger.aggregates.book import Book
from ledger.aggregates.delivery import Delivery
from ledger.events import SegmentsServed
from ledger.ids import BOOK_ID, delivery_id, node_id
from ledger.judged import Judged, pack
from ledger.money import FEES, friend_account
from ledger.receipt import Receipt
from ledger.services import budgets, disputes, payouts, settle, streams
from ledger.services.broadcasts import end_broadcast
from ledger.services.estimate import Estimate, Portion

pytestmark = pytest.mark.browser
ENDS_US = 1_800_003_600_000_000
HOUR_US = 3_600_000_000
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def page(browser: Browser):
    context = browser.new_context(viewport=PHONE, device_scale_factor=2)
    yield context.new_page()
    context.close()


def served(hub: Hub, credited_bytes: int) -> None:
    """One receipt of the node, accepted."""
    world = hub.world
    receipt = Receipt(
        ticket_hash=bytes(32), counter=1, base_sequence=0, bitmap=b"\x01" + bytes(63), digest=bytes(32)
    )
    delivery = Delivery(delivery_id(world.broadcast.id))
    delivery.trigger(
        SegmentsServed,
        at_us=world.now_us,
        node_id=node_id(hub.node.key.public_key),
        batch_header=bytes(147),
        first_sequence=0,
        network_limit=2,
        receipts=receipt.sign(new_key()).encode(),
        **pack([0], [uuid4()], [b""], [Judged("accepted", 9, credited_bytes)]),
    )
    world.ledger.save(delivery)
    world.project()


def test_a_friend_sees_what_they_earned_and_why(page: Page, hub: Hub, tmp_path: Path) -> None:
    friend_id = uuid4()
    hub.world.directory.name_person(friend_id, "Berta")
    token = hub.world.token(Role.FRIEND, friend_id)["Authorization"].removeprefix("Bearer ")
    hub.world.earn(friend_id, node_id(hub.node.key.public_key), 1_234_560)

    page.goto(f"{hub.url}/friend")
    page.fill("#token", "sp2p_friend_wrong")
    page.click("button[type=submit]")
    page.wait_for_function("document.querySelector('#message').textContent.includes('opens nothing')")
    page.goto("about:blank")
    made = Estimate(hub.world.ledger.size(), ENDS_US, {friend_id: Portion(3_980_000, 38_000)}, {})
    hub.world.estimates.share(made, for_s=60)
    page.goto(f"{hub.url}/friend#{token}")
    page.wait_for_selector("#statement:visible")
    assert page.inner_text("#name") == "Thank you, Berta"
    assert "4.0\xa0MB delivered, about 0.038 EUR" in page.inner_text("#estimate")
    assert page.inner_text("#pending") == "1.23456"
    assert page.inner_text("#available") == "0.00"
    row = page.inner_text("#lines tr")
    assert "delivered" in row
    assert "123.5\xa0MB" in row
    assert "1.23456" in row
    assert token not in page.url
    # Nobody touches the page: the next line comes by itself, and once.
    hub.world.earn(friend_id, node_id(hub.node.key.public_key), 1_000_000, epoch=1)
    page.locator("#pending", has_text="2.23456").wait_for()
    page.locator("#lines tr:first-child", has_text="1.00").wait_for()
    assert page.locator("#lines tr").count() == 2
    page.locator("#estimate").wait_for(state="hidden")  # it was from before that line
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=tmp_path / "friend.png")


def test_a_friend_sees_what_is_on_its_way_in_dispute_and_corrected(page: Page, hub: Hub) -> None:
    friend_id, ledger, at_us = uuid4(), hub.world.ledger, hub.world.now_us
    token = hub.world.token(Role.FRIEND, friend_id)["Authorization"].removeprefix("Bearer ")
    hub.world.earn(friend_id, node_id(hub.node.key.public_key), 3_000_000)
    book = ledger.load(Book, BOOK_ID)
    book.release_hold(0, at_us=at_us)
    book.reserve_payout_line(uuid4(), 1, friend_id=friend_id, amount_micro=2_000_000, at_us=at_us)
    available = friend_account(friend_id, "available")
    book.adjust(
        source=available, target=FEES, amount_micro=400_000, reference="a", reason="gift", at_us=at_us
    )
    batch_id = uuid4()
    book.reserve_payout_line(batch_id, 1, friend_id=friend_id, amount_micro=500_000, at_us=at_us)
    book.confirm_payout_line(batch_id, 1, at_us=at_us)
    book.return_payout_line(
        batch_id, 1, amount_micro=450_000, reference="b", reason="account closed (AC04)", at_us=at_us
    )
    ledger.save(book)
    hub.world.earn(friend_id, node_id(hub.node.key.public_key), 1_000_000, epoch=1)
    settled = ledger.size() - 1
    disputes.open_dispute(ledger, settled, 0, reason="fewer bytes", at_us=at_us)
    disputes.decide_dispute(ledger, 1, uphold=True, reason="it was so", at_us=at_us)
    hub.world.project()
    page.goto(f"{hub.url}/friend#{token}")
    page.wait_for_selector("#statement:visible")
    shown = [page.inner_text(f"#{pot}") for pot in ("pending", "available", "in-flight", "paid")]
    assert shown == ["0.00", "0.55", "2.00", "0.05"]
    rows = page.locator("#lines tr").all_inner_texts()
    assert len(rows) == 10
    for row, words in zip(
        rows,
        [
            ("upheld", "it was so", "−1.00"),
            ("in dispute", "fewer bytes", "1.00"),
            ("delivered", "1.00"),
            ("came back", "account closed (AC04)", "0.45"),
            ("paid out", "0.50"),
            ("on its way", "0.50"),
            ("correction: gift", "−0.40"),
            ("on its way", "2.00"),
            ("now available", "3.00"),
            ("delivered", "3.00"),
        ],
        strict=True,
    ):
        assert all(word in row for word in words), row
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_a_friend_asks_why_and_disputes_a_line_on_the_page(page: Page, hub: Hub, tmp_path: Path) -> None:
    world, viewer = hub.world, new_key()
    budgets.set_tariff(world.ledger, world.stream_id, rate_micro_per_gb=10**12, at_us=world.now_us)
    budgets.deposit(world.ledger, world.stream_id, amount_micro=10**9, reference="r", at_us=world.now_us)
    world.now_us += HOUR_US  # from now on that is the price
    first = len(world.media)
    world.publish({first: bytes(1_000), first + 1: bytes(1_000)})
    ticket = world.issue(world.open_session("main", viewer.public_key), hub.node.key, first)
    receipt = world.receipt(ticket, viewer, [first, first + 1])
    assert world.desk.judge_receipt(receipt, at_us=world.now_us).verdict == "accepted"
    world.now_us += HOUR_US
    settle.settle_due_epochs(world.ledger, at_us=world.now_us)
    world.project()
    friend_id = world.reads.node(node_id(hub.node.key.public_key)).friend_id  # type: ignore[union-attr]
    token = world.token(Role.FRIEND, friend_id)["Authorization"].removeprefix("Bearer ")
    page.goto(f"{hub.url}/friend#{token}")
    delivered = page.locator("#lines tr", has_text="delivered").first
    why = delivered.get_by_role("button", name="Why?")
    why.click()
    opened = page.locator("#lines tr:has(dl.sums)")
    opened.wait_for()
    assert why.get_attribute("aria-expanded") == "true"
    told = " ".join(opened.inner_text().split())
    for words in (
        "All that arrived of this stream, at 1 000 000.00 a GB 2.00",
        "The hub's fee, 5 % −0.10",
        "goes in equal parts to the one node that served −0.19",
        "Your part of that: 100% 1.71",
        "This line 1.71",
        "Receipts: 1, in the log at ",
        f"--from {hub.url}/log",
    ):
        assert words in told, told
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=tmp_path / "why.png", full_page=True)
    opened.get_by_role("textbox").fill("counted more")
    opened.get_by_role("button", name="Dispute").click()
    opened.get_by_text("is open: this line waits").wait_for()
    world.project()
    page.locator("#lines tr", has_text="in dispute, waits for the decision: counted more").wait_for()
    why.click()
    opened.wait_for(state="detached")
    # A line that the log does not lead to says so.
    world.earn(friend_id, node_id(hub.node.key.public_key), 7, epoch=5)
    page.locator("#lines tr", has_text="0.000007").get_by_role("button", name="Why?").click()
    page.get_by_text("Tell the operator, and run an audit").wait_for()


def test_a_creator_sees_the_crew_and_the_costs_and_makes_a_new_key(
    page: Page, hub: Hub, tmp_path: Path
) -> None:
    owner_id = hub.world.reads.stream("main").owner_id  # type: ignore[union-attr]
    token = hub.world.token(Role.CREATOR, owner_id)["Authorization"].removeprefix("Bearer ")
    nid = node_id(hub.node.key.public_key)
    friend_id = hub.world.reads.node(nid).friend_id  # type: ignore[union-attr]
    stream_id = hub.world.stream_id
    made = Estimate(hub.world.ledger.size(), ENDS_US, {}, {stream_id: Portion(3_980_000, 40_000)})
    hub.world.estimates.share(made, for_s=60)
    page.goto(f"{hub.url}/creator#{token}")
    page.locator(".crew-none:visible").wait_for()
    assert "4.0\xa0MB delivered, about 0.04." in page.inner_text(".estimate")
    hub.world.earn(friend_id, nid, 1_234_560)
    page.reload()
    page.locator(".crew td", has_text="Berta's attic").wait_for()
    assert page.inner_text(".budget") == "48.76544"
    assert page.inner_text(".earned") == "1.23456"
    assert page.inner_text(".crew-now") == "Berta's attic (2)"
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(".rotate")
    key = page.locator(".new-key code", has_text="main_")
    key.wait_for()
    assert streams.check_stream_key(hub.world.ledger, key.inner_text()) is not None
    # Nothing of what follows needs a reload.
    assert page.is_hidden(".refused")
    reason = "the audio is Opus; set the encoder to AAC"
    object.__setattr__(hub.world.services, "refusal", {"main": (reason, hub.world.now_us)}.get)
    page.locator(".refused", has_text=reason).wait_for(timeout=25_000)
    page.route("**/api/creators/**", lambda route: route.abort())
    page.locator("#away").wait_for(timeout=25_000)
    page.unroute_all()
    page.locator("#away").wait_for(state="hidden", timeout=25_000)
    hub.world.watching.clear()
    end_broadcast(hub.world.ledger, hub.world.broadcast.id, reason="stopped", at_us=hub.world.now_us)
    hub.world.project()
    page.locator(".crew-now", has_text="nobody").wait_for()
    assert token not in page.url
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=tmp_path / "creator.png", full_page=True)


def test_an_operator_sees_what_is_not_well(page: Page, hub: Hub, tmp_path: Path) -> None:
    token = hub.world.operator["Authorization"].removeprefix("Bearer ")
    object.__setattr__(hub.world.services, "overdue", lambda: {"settlement": 0, "publisher": 44})
    page.goto(f"{hub.url}/operator#{token}")
    page.locator("#verdict", has_text="not ready").wait_for()
    assert "publisher" in page.inner_text("#duties")
    assert "silent for 44 s" in page.inner_text("#duties")
    assert "Berta's attic" in page.inner_text("#nodes")
    assert page.inner_text("#no-payouts").startswith("None was planned")
    object.__setattr__(hub.world.services, "overdue", lambda: {"settlement": 0, "publisher": 0})
    page.locator("#verdict", has_text="well").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=tmp_path / "operator.png", full_page=True)


def test_an_operator_is_told_the_next_command_of_a_payout(page: Page, hub: Hub, tmp_path: Path) -> None:
    world, friend_id = hub.world, uuid4()
    world.earn(friend_id, node_id(hub.node.key.public_key), 30_000_000)
    book = world.ledger.load(Book, BOOK_ID)
    book.release_hold(0, at_us=world.now_us)
    world.ledger.save(book)
    plan = payouts.plan(
        world.ledger,
        rail="csv",
        threshold_micro=1,
        destinations={friend_id: bytes(32)},
        at_us=world.now_us,
        operator="me",
    )
    assert plan.batch_id is not None
    world.project()
    token = world.operator["Authorization"].removeprefix("Bearer ")
    page.goto(f"{hub.url}/operator#{token}")
    page.locator("#payouts code", has_text="streamrp2p payout approve 1").wait_for()
    assert page.inner_text("#unit") == "EUR"
    payouts.approve(world.ledger, plan.batch_id, operator="me", at_us=world.now_us)
    world.project()
    page.locator("#payouts code", has_text="streamrp2p payout run 1").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=tmp_path / "payouts.png", full_page=True)


def test_another_s_token_opens_no_page(page: Page, hub: Hub) -> None:
    token = hub.world.token(Role.FRIEND, uuid4())["Authorization"].removeprefix("Bearer ")
    for path in ("creator", "operator"):
        page.goto(f"{hub.url}/{path}#{token}")
        page.locator("#message", has_text=f"begins with sp2p_{path}_").wait_for()
        assert page.is_hidden("#inside")


def test_friends_are_thanked_by_the_names_of_their_nodes(page: Page, hub: Hub, tmp_path: Path) -> None:
    page.goto(f"{hub.url}/thanks")
    assert "Nobody has carried" in page.inner_text("main")
    served(hub, 5_000_000_000)
    page.reload()
    assert "Berta's attic" in page.inner_text(".thanks li")
    assert "5.0 GB" in page.inner_text(".thanks li")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=tmp_path / "thanks.png", full_page=True)


@pytest.mark.parametrize("name", ["W" * 80, "\u202eמחשב של ברטה (בעליית הגג)"])
def test_no_name_breaks_a_page(page: Page, hub: Hub, name: str) -> None:
    """Of a node: whoever carries a stream chooses it, and it stands on everybody's pages."""
    world, nid = hub.world, node_id(hub.node.key.public_key)
    friend_id, owner_id = world.reads.node(nid).friend_id, world.reads.stream("main").owner_id  # type: ignore[union-attr]
    world.directory.save_profile(NodeProfile(nid, name, hub.node.url), at_us=world.now_us)
    world.directory.name_person(friend_id, name)
    served(hub, 5_000_000_000)
    world.earn(friend_id, nid, 1_234_560)
    tokens = {
        "/friend": world.token(Role.FRIEND, friend_id),
        "/creator": world.token(Role.CREATOR, owner_id),
        "/operator": world.operator,
    }
    for path in ("/thanks", "/watch/main", *tokens):
        sent = tokens.get(path, {}).get("Authorization", "").removeprefix("Bearer ")
        page.goto(f"{hub.url}{path}#{sent}")
        page.locator("bdi:visible", has_text=name).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"], path


@pytest.mark.parametrize("path", ["/", "/audit", "/thanks", "/creator", "/operator", "/watch/none"])
def test_pages_fit_a_phone(page: Page, hub: Hub, tmp_path: Path, path: str) -> None:
    hub.world.log_folder.joinpath("checkpoint").write_text(
        f"hub.test/log\n120\n{'A' * 43}=\n\n— hub {'B' * 90}\n"
    )
    page.goto(hub.url + path)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=tmp_path / "page.png")
