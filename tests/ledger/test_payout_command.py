"""`streamrp2p payout`, as an operator types it."""

import csv
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import structlog

from hub.cli import main
from ledger.aggregates.book import Book
from ledger.aggregates.payout import payout_id
from ledger.application import Ledger
from ledger.ids import BOOK_ID
from ledger.services import crew
from ledger.settlement import Credit, Tariff, pages, settle

STREAM, FRIEND = UUID(int=1), UUID(int=20)
DESTINATION = "DE02 1203 0000 0000 2020 51"


@pytest.fixture
def earned(ledger: Ledger, database_url: str) -> Ledger:
    """One friend, Anna, with 4.75 available."""
    crew.found_crew(ledger, name="crew", unit="CHF", epoch_length_s=3_600, at_us=1)
    book = Book(BOOK_ID)
    book.deposit(STREAM, amount_micro=5_000_000, reference="d", at_us=1)
    tariff = Tariff(
        version=0, rate_micro_per_gb=10**9, fee_bp=500, floor_bp=0, plain_bp=0, plain_income_cap_bp=0
    )
    credit = Credit(
        stream_id=STREAM,
        node_id=UUID(int=30),
        friend_id=FRIEND,
        plain=False,
        late=False,
        units=1,
        credited_bytes=10**9,
    )
    book.settle_epoch(
        0, log_to=0, pages=pages(settle([credit], {STREAM: tariff}, {STREAM: 5_000_000})), at_us=1
    )
    book.release_hold(0, at_us=1)
    ledger.save(book)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO crew_main.people (person_id, display_name) VALUES (%s, 'Anna')", (FRIEND,)
        )
    return ledger


class Shell:
    """The command line in this process: starting Python anew for each command would take most of the time."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        database_url: str,
        folder: Path,
    ) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.setenv("STREAMRP2P_DATABASE_URL", database_url)
        monkeypatch.setenv("STREAMRP2P_DATA_DIR", str(folder))
        monkeypatch.setenv("COLUMNS", "200")

    def __call__(self, *arguments: str, code: int | None = 0, group: str = "payout") -> str:
        """What it prints, with what it says of errors unless all went well; `code` None: it may end as it likes."""
        self.monkeypatch.setattr(sys, "argv", ["streamrp2p", group, *arguments])
        with pytest.raises(SystemExit) as done:
            main()
        out, self.err = self.capsys.readouterr()
        assert code is None or (done.value.code or 0) == code, out + self.err
        return out if code == 0 else out + self.err

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, tmp_path: Path
) -> Iterator[Shell]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield Shell(monkeypatch, capsys, database_url, tmp_path)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def test_from_the_plan_to_the_file(earned: Ledger, shell: Shell) -> None:
    waiting = shell.json("plan")
    assert waiting["batch_id"] is None
    assert waiting["waiting"] == [
        {"friend_id": str(FRIEND), "amount_micro": 4_750_000, "reason": "no_destination"}
    ]
    assert "Anna: destination set" in shell("destination", str(FRIEND), DESTINATION)
    dry = shell("plan", "--dry-run")
    assert "Anna" in dry
    assert "4.75" in dry
    assert "CHF" in dry
    assert shell.json("show")["payouts"] == []
    batch_id = shell.json("plan")["batch_id"]
    assert batch_id == str(payout_id(1))
    assert "only an approved one is run" in shell("run", "1", code=1)
    shell("approve", "1", "--operator", "op")
    planned = shell.json("run", "1", "--dry-run")
    assert [line["action"] for line in planned["lines"]] == ["submit"]
    assert not Path(planned["file"]).exists()
    ran = shell.json("run", batch_id)
    assert [line["state"] for line in ran["lines"]] == ["confirmed"]
    with Path(ran["file"]).open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["amount"], row["unit"], row["destination"]) == ("4.750000", "CHF", DESTINATION)
    assert shell.json("show", "1")["state"] == "finished"
    assert DESTINATION not in "".join(str(r.event) for r in earned.read(0, 1_000))


def test_mistakes_are_told_with_their_exit_code(earned: Ledger, shell: Shell) -> None:
    for command in ("show", "approve", "cancel", "run"):
        assert "there is no payout 7" in shell(command, "7", code=4)
    assert "neither a payout's number nor its id" in shell("show", "x", code=2)
    assert "no rail 'gold'" in shell("plan", "--rail", "gold", code=2)
    assert "no friend" in shell("destination", str(UUID(int=99)), "x", code=4)
    assert "no friend 'Berta'" in shell("destination", "Berta", "x", code=4)
    assert "must not begin with" in shell("destination", str(FRIEND), "=1+1", code=1)


def test_what_is_printed_says_what_to_type_next(earned: Ledger, shell: Shell, database_url: str) -> None:
    assert f"streamrp2p payout destination {FRIEND} WHERE" in shell("plan")
    assert "Anna: destination set" in shell("destination", "Anna", DESTINATION)
    assert "next: streamrp2p payout approve 1\n" in shell("plan")
    assert "payout 1: approved\nnext: streamrp2p payout run 1\n" in shell("approve", "1")
    assert "by hand" in shell("run", "1")
    assert str(payout_id(1)) in shell("show")
    other = UUID(int=21)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO crew_main.people (person_id, display_name) VALUES (%s, 'Anna')", (other,)
        )
    told = shell("destination", "Anna", DESTINATION, code=2)
    assert str(FRIEND) in told
    assert str(other) in told
