"""`streamrp2p stream` and `invite`: what an operator hands on opens what it says, and the old one no longer."""

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import typer
from typer.testing import CliRunner

from api.directory import Directory, Role
from hub.cli import app
from hub.operator import micro_from_text
from ledger.application import Ledger
from ledger.services import crew
from ledger.services.streams import load_stream
from ledger.store.database import connect_pool


@pytest.fixture
def founded(ledger: Ledger, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=1)
    monkeypatch.setenv("STREAMRP2P_DATABASE_URL", database_url)
    monkeypatch.setenv("STREAMRP2P_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("STREAMRP2P_PUBLIC_URL", "https://live.example.org")
    return ledger


def typed(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def token_in(text: str, page: str) -> str:
    (link,) = (
        urlsplit(word) for word in text.split() if word.startswith(f"https://live.example.org/{page}#")
    )
    return link.fragment


def test_a_creators_page_comes_with_the_stream_and_can_be_made_anew(
    founded: Ledger, database_url: str
) -> None:
    made = json.loads(typed("stream", "create", "second", "--json"))
    assert made["watch_url"] == "https://live.example.org/watch/second"
    assert token_in(made["creator_url"], "creator") == made["creator_token"]
    again = token_in(typed("stream", "token", "second"), "creator")
    stream = load_stream(founded, "second")
    assert stream is not None
    with connect_pool(database_url) as pool:
        directory = Directory(pool)
        assert directory.token(made["creator_token"], now_us=2) is None
        found = directory.token(again, now_us=2)
    assert found is not None
    assert (found.role, found.subject_id) == (Role.CREATOR, stream.owner_id)
    told = typed("stream", "create", "third")
    assert "Stream Key  third_" in told
    assert token_in(told, "creator")


def test_an_invite_names_the_friends_page(founded: Ledger) -> None:
    assert token_in(typed("invite", "berta"), "friend").startswith("sp2p_friend_")


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        ("2.5e3", "such as 25"),
        ("-5", "such as 25"),
        ("1,5", "such as 25"),
        ("0.0000001", "six decimals"),
        ("9" * 13, "below"),
    ],
)
def test_an_amount_that_is_none_is_told_why(amount: str, said: str) -> None:
    with pytest.raises(typer.BadParameter, match=said):
        micro_from_text(amount)


def test_money_goes_into_a_budget_and_back_once_for_each_reference(
    founded: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMRP2P_UNIT", "USD")  # of the next crew; this one's is EUR
    typed("stream", "create", "main")
    size = founded.size()
    dry = typed("stream", "fund", "main", "25", "--reference", "in", "--dry-run")
    assert ("dry run" in dry, "25.00 EUR" in dry, founded.size()) == (True, True, size)
    for _ in range(2):
        assert "is now 25.00 EUR" in typed("stream", "fund", "main", "25", "--reference", "in")
    size = founded.size()
    dry = typed("stream", "withdraw", "main", "0.000001", "--reference", "out", "--dry-run")
    assert ("24.999999 EUR" in dry, founded.size()) == (True, size)
    for _ in range(2):
        assert "is now 5.00 EUR" in typed("stream", "withdraw", "main", "20", "--reference", "out")
    for amount, reference in (("5.000001", "more"), ("0", "none"), ("1", "out")):
        typed("stream", "withdraw", "main", amount, "--reference", reference, code=1)
    for amount in ("-1", "1e3", "9" * 13, "0.0000001", "nan", "١"):
        typed("stream", "fund", "main", "--reference", "odd", "--", amount, code=2)
    typed("stream", "fund", "main", "999999999999", "--reference", "huge", code=1)


def test_a_tariff_is_shown_and_each_of_its_numbers_set(founded: Ledger) -> None:
    typed("stream", "create", "main")
    assert "(30 %)" in typed("stream", "tariff", "main")
    told = typed("stream", "tariff", "main", "--rate-per-gb", "0.02", "--fee-bp", "525")
    assert ("0.02 EUR per GB" in told, "(5.25 %)" in told) == (True, True)
    size = founded.size()
    assert json.loads(typed("stream", "tariff", "main", "--json")) == {
        "stream": "main",
        "tariff_version": 2,
        "rate_micro_per_gb": 20_000,
        "fee_bp": 525,
        "floor_bp": 1_000,
        "plain_bp": 5_000,
        "plain_income_cap_bp": 3_000,
    }
    assert founded.size() == size
    parts = ("--floor-bp", "0", "--plain-bp", "1", "--plain-income-cap-bp", "9999", "--fee-bp", "0")
    typed("stream", "tariff", "main", *parts)
    assert " 0.02 EUR" in typed("stream", "tariff", "main")
    for wrong in ("10001", "-1"):
        typed("stream", "tariff", "main", "--fee-bp", wrong, code=1)
