from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from api_world import World
from fastapi.testclient import TestClient
from test_streams import register

from api.directory import Role
from ledger.aggregates.book import Book
from ledger.events import Posting, SettlementLine, Transfer
from ledger.ids import BOOK_ID, CREW_ID
from ledger.money import budget_account, friend_account
from ledger.rails.csv_file import CsvRail
from ledger.rails.returned import Return
from ledger.services import budgets, payouts, returns
from ledger.services.destinations import Destination, set_destination
from ledger.services.payment_files import OtherFilesError
from ledger.settlement import Page

AMOUNT_MICRO = 3_000_000


@pytest.fixture
def friend_id(client: TestClient, world: World, database_url: str) -> UUID:
    """A friend with money available and a place to send it to."""
    friend_id, stream_id = uuid4(), UUID(register(client, world)["stream_id"])
    at_us = world.now_us
    budgets.deposit(world.ledger, stream_id, amount_micro=10 * AMOUNT_MICRO, reference="first", at_us=at_us)
    line = SettlementLine(stream_id, uuid4(), friend_id, "delivery", 1, 1, 1, 1, AMOUNT_MICRO)
    postings = (
        Posting(budget_account(stream_id), -AMOUNT_MICRO),
        Posting(friend_account(friend_id, "pending"), AMOUNT_MICRO),
    )
    page = Page(lines=(line,), transfers=(Transfer("settlement", postings),))
    book = world.ledger.load(Book, BOOK_ID)
    book.settle_epoch(0, log_to=world.ledger.size(), pages=[page], at_us=at_us)
    book.release_hold(0, at_us=at_us)
    world.ledger.save(book)
    with psycopg.connect(database_url, options="-c search_path=crew_main") as connection:
        set_destination(connection, friend_id, "DE02120300000000202051", salt=b"s" * 16)
    return friend_id


def post(client: TestClient, world: World, path: str, body: Any = None) -> Any:
    return client.post(f"/api/payouts{path}", json=body, headers=world.operator)


def test_a_payout_is_planned_approved_and_shown(client: TestClient, world: World, friend_id: UUID) -> None:
    size = world.ledger.size()
    dry = post(client, world, "", {"dry_run": True}).json()
    assert (dry["batch_id"], dry["total_micro"], world.ledger.size()) == (None, AMOUNT_MICRO, size)
    plan = post(client, world, "", {})
    assert plan.status_code == 201
    batch_id = plan.json()["batch_id"]
    assert plan.json()["lines"] == [{"line": 1, "friend_id": str(friend_id), "amount_micro": AMOUNT_MICRO}]
    assert post(client, world, "", {}).status_code == 409
    world.project()
    listed = client.get("/api/payouts", headers=world.operator).json()
    assert (listed["unit"], listed["payouts"][0]["number"], listed["payouts"][0]["next"]) == (
        "EUR",
        1,
        "approve",
    )
    assert post(client, world, f"/{batch_id}/approve").json()["state"] == "approved"
    world.project()
    shown = client.get(f"/api/payouts/{batch_id}", headers=world.operator).json()
    assert (shown["number"], shown["next"]) == (1, "run")
    assert shown["decided_by"].startswith("token:")
    assert shown["lines"][0]["state"] == "planned"
    assert [p["batch_id"] for p in client.get("/api/payouts", headers=world.operator).json()["payouts"]] == [
        batch_id
    ]
    assert "DE0212" not in str(shown)


def test_what_is_below_the_threshold_waits(client: TestClient, world: World, friend_id: UUID) -> None:
    plan = post(client, world, "", {"threshold_micro": AMOUNT_MICRO + 1}).json()
    waiting = {"friend_id": str(friend_id), "amount_micro": AMOUNT_MICRO, "reason": "below_threshold"}
    assert (plan["batch_id"], plan["waiting"]) == (None, [waiting])


def test_a_planned_payout_may_be_cancelled(client: TestClient, world: World, friend_id: UUID) -> None:
    batch_id = post(client, world, "", {}).json()["batch_id"]
    assert post(client, world, f"/{batch_id}/cancel", {"reason": "wrong rail"}).json()["state"] == "cancelled"
    refused = post(client, world, f"/{batch_id}/approve")
    assert refused.json()["type"] == "/problems/not-allowed"
    assert post(client, world, f"/{uuid4()}/approve").status_code == 404


def test_a_payout_that_a_rail_was_given_is_not_cancelled(
    client: TestClient, world: World, friend_id: UUID
) -> None:
    batch_id = post(client, world, "", {}).json()["batch_id"]
    lost = replace(world.services, given=lambda: {UUID(batch_id): {"csv": frozenset({1})}})
    client.app.state.services = lost  # type: ignore[attr-defined]
    refused = post(client, world, f"/{batch_id}/cancel", {"reason": "x"})
    assert (refused.status_code, "older than what was paid" in refused.text) == (409, True)


def test_what_came_back_is_shown_to_the_operator_and_the_friend(
    client: TestClient, world: World, friend_id: UUID, tmp_path: Path
) -> None:
    batch_id = UUID(post(client, world, "", {}).json()["batch_id"])
    post(client, world, f"/{batch_id}/approve")
    where = {friend_id: Destination("DE02120300000000202051", b"s" * 16)}
    payouts.run(world.ledger, CsvRail(tmp_path / "out.csv"), batch_id, destinations=where, at_us=world.now_us)
    returns.return_line(
        world.ledger,
        batch_id,
        1,
        amount_micro=AMOUNT_MICRO - 5,
        reference="bank 7",
        reason="account closed",
        at_us=world.now_us,
    )
    world.project()
    shown = client.get(f"/api/payouts/{batch_id}", headers=world.operator).json()
    assert (shown["state"], shown["next"]) == ("finished", "")
    assert (shown["confirmed_micro"], shown["returned_micro"]) == (AMOUNT_MICRO, AMOUNT_MICRO - 5)
    assert shown["lines"][0]["returned_micro"] == AMOUNT_MICRO - 5
    friend = world.token(Role.FRIEND, friend_id)
    statement = client.get("/api/friends/me/statement", headers=friend).json()
    assert (statement["available_micro"], statement["paid_micro"]) == (AMOUNT_MICRO - 5, 5)
    line = statement["lines"][0]
    assert (line["kind"], line["reason"]) == ("payout_returned", "account closed")
    path = f"/api/friends/me/explain/{line['position']}/{line['line']}"
    why = client.get(path, headers=friend).json()
    assert (why["note"], why["amount_micro"]) == ("account closed", AMOUNT_MICRO - 5)
    assert [(p["reason"], p["amount_micro"]) for p in why["parts"]] == [("payout_confirmed", AMOUNT_MICRO)]
    waiting = post(client, world, "", {}).json()["waiting"]
    assert [(w["amount_micro"], w["reason"]) for w in waiting] == [(AMOUNT_MICRO - 5, "came_back")]


def test_nothing_is_planned_while_the_files_know_of_a_return_that_the_ledger_forgot(
    client: TestClient, world: World, friend_id: UUID, tmp_path: Path
) -> None:
    batch_id = UUID(post(client, world, "", {}).json()["batch_id"])
    post(client, world, f"/{batch_id}/approve")
    where = {friend_id: Destination("DE02120300000000202051", b"s" * 16)}
    payouts.run(world.ledger, CsvRail(tmp_path / "out.csv"), batch_id, destinations=where, at_us=world.now_us)
    lost = Return(batch_id, 1, 5, "bank 7", "account closed")
    client.app.state.services = replace(world.services, returned=lambda: [lost])  # type: ignore[attr-defined]
    refused = post(client, world, "", {})
    assert (refused.status_code, "bank 7" in refused.text) == (409, True)


def test_nothing_is_planned_beside_other_payment_files(
    client: TestClient, world: World, friend_id: UUID, tmp_path: Path
) -> None:
    def elsewhere() -> list[Return]:
        raise OtherFilesError(tmp_path)

    client.app.state.services = replace(world.services, returned=elsewhere)  # type: ignore[attr-defined]
    refused = post(client, world, "", {})
    assert (refused.status_code, "last paid with" in refused.text) == (409, True)


def test_what_is_no_payout_and_what_is_no_answer(client: TestClient, world: World, friend_id: UUID) -> None:
    for other in (BOOK_ID, CREW_ID):
        assert post(client, world, f"/{other}/approve").status_code == 404
        assert post(client, world, f"/{other}/cancel", {"reason": "x"}).status_code == 404
    for dry_run in ("no", "yes", 1, 0, None):
        assert post(client, world, "", {"dry_run": dry_run}).status_code == 422
    assert client.get("/api/payouts", headers=world.operator).json()["payouts"] == []


def test_only_operators_see_payouts(client: TestClient, world: World) -> None:
    assert client.get("/api/payouts").status_code == 401
    assert client.post("/api/payouts", json={}).status_code == 401
