"""The exported books against the tools that read them, and against our own."""

import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_audit_lives import RandomLife
from test_payout_command import Shell

from ledger.aggregates.book import Book
from ledger.application import Ledger
from ledger.bookkeeping import FORMATS, account_name, plain_text
from ledger.events import AdjustmentBooked, CrewFounded, Event, Posting, Transfer
from ledger.ids import BOOK_ID
from ledger.services.explain_log import LedgerLog


@pytest.fixture
def lived(ledger: Ledger) -> Ledger:
    RandomLife(ledger, 5).run(160)
    return ledger


def exported(ledger: Ledger, name: str) -> str:
    return "\n".join(plain_text(LedgerLog(ledger).events(0, None), name)) + "\n"


def ours(ledger: Ledger) -> dict[str, Decimal]:
    book = ledger.load(Book, BOOK_ID)
    return {account_name(a): -Decimal(m) / 10**6 for a, m in book.accounts.items() if m}


def bean_check(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "bean-check"
    return subprocess.run([str(program), str(path)], capture_output=True, text=True, check=False)


def test_bean_check_passes_and_beancounts_balances_are_ours(lived: Ledger, tmp_path: Path) -> None:
    from beancount import loader
    from beancount.core.data import Transaction

    path = tmp_path / "books.beancount"
    path.write_text(exported(lived, "beancount"))
    checked = bean_check(path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    entries, errors, _ = loader.load_file(str(path))
    assert errors == []
    total: dict[str, Decimal] = {}
    for entry in entries:
        if isinstance(entry, Transaction):
            assert entry.links == {f"log-{entry.meta['position']}"}
            for posting in entry.postings:
                total[posting.account] = total.get(posting.account, Decimal(0)) + posting.units.number
    assert {a: m for a, m in total.items() if m} == ours(lived)
    assert sum(total.values()) == 0


def test_bean_check_finds_one_micro_unit_that_is_not_ours(lived: Ledger, tmp_path: Path) -> None:
    lines = exported(lived, "beancount").splitlines()
    at = max(n for n, line in enumerate(lines) if " balance " in line)
    words = lines[at].split()
    words[-2] = str(Decimal(words[-2]) + Decimal("0.000010"))
    lines[at] = " ".join(words)
    path = tmp_path / "books.beancount"
    path.write_text("\n".join(lines) + "\n")
    assert bean_check(path).returncode == 1


def test_hledgers_journal_says_the_same_numbers(lived: Ledger, tmp_path: Path) -> None:
    text = exported(lived, "hledger")
    total: dict[str, Decimal] = {}
    asserted: dict[str, Decimal] = {}
    for line in text.splitlines():
        if not line.startswith("    "):
            continue
        account, _, rest = line.strip().partition("  ")
        number, *more = rest.split()
        total[account] = total.get(account, Decimal(0)) + Decimal(number)
        if "=" in more:
            asserted[account] = Decimal(more[more.index("=") + 1])
    assert total == asserted
    assert {a: m for a, m in total.items() if m} == {a.lower(): m for a, m in ours(lived).items()}


def test_hledger_check_passes(lived: Ledger, tmp_path: Path) -> None:
    program = shutil.which("hledger")
    if program is None:
        pytest.skip("hledger is not installed")
    path = tmp_path / "books.journal"
    path.write_text(exported(lived, "hledger"))
    subprocess.run([program, "-f", str(path), "check"], check=True)


@given(st.text(max_size=40, alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_no_reason_breaks_the_journal(reason: str) -> None:
    from beancount.parser import parser

    founded = CrewFounded(
        originator_id=BOOK_ID,
        originator_version=1,
        at_us=1,
        name="crew",
        unit="EUR",
        genesis_us=0,
        epoch_length_s=1,
    )
    transfer = Transfer("adjustment", (Posting("fees", -1), Posting("external", 1)))
    adjusted = AdjustmentBooked(
        originator_id=BOOK_ID, originator_version=1, at_us=2, reference="r", reason=reason, transfer=transfer
    )
    events: list[tuple[int, Event]] = [(0, founded), (1, adjusted)]
    entries, errors, _ = parser.parse_string("\n".join(plain_text(events, "beancount")) + "\n")
    assert errors == []
    assert len(entries) == 5
    hledger = list(plain_text(events, "hledger"))
    assert sum(line.startswith("1970-01-01 *") for line in hledger) == 1


def test_the_command(
    lived: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    database_url: str,
    tmp_path: Path,
) -> None:
    run = Shell(monkeypatch, capsys, database_url, tmp_path)
    for name in FORMATS:
        assert run("export", "--format", name, group="books") == exported(lived, name)
    run("export", "--format", "gnucash", group="books", code=2)
