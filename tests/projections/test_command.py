"""`streamrp2p projections` against a real database."""

import json

import pytest
from histories import named
from typer.testing import CliRunner

from hub.commands.projections import app
from ledger.aggregates.book import Book
from ledger.application import Ledger
from ledger.ids import BOOK_ID
from projections.catalog import PROJECTIONS


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STREAMRP2P_DATABASE_URL", database_url)
    return lambda *args: CliRunner().invoke(app, args)


def test_rebuild_builds_what_was_never_built_and_status_shows_it_level(run, ledger: Ledger) -> None:
    book = Book(BOOK_ID)
    book.deposit(named("stream", 0), amount_micro=5, reference="r", at_us=1)
    ledger.save(book)
    done = run("rebuild")
    assert (done.exit_code, done.stdout.splitlines()[-1][-13:]) == (0, "from 1 events")
    shown = json.loads(run("status", "--json").stdout)
    assert shown["log_size"] == 1
    assert {(p["name"], p["position"], p["behind_events"]) for p in shown["projections"]} == {
        (p.name, 1, 0) for p in PROJECTIONS
    }
    assert "balances" in run("status").stdout
    book.deposit(named("stream", 0), amount_micro=5, reference="s", at_us=1)
    ledger.save(book)
    run("rebuild", "balances")
    shown = json.loads(run("status", "--json").stdout)
    assert {p["name"] for p in shown["projections"] if p["behind_events"] == 0} == {"balances"}


def test_a_name_that_is_no_projection_is_a_usage_error_that_lists_them(run) -> None:
    refused = run("rebuild", "nonsense")
    assert refused.exit_code == 2
    assert "streams" in refused.stderr
