"""A database from an older backup beside newer payment files: what was paid is not paid again, whatever is planned.

"Lost" is what the files tell and the ledger does not.
"""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from test_pain001 import DEBTOR
from test_pain001 import DESTINATIONS as BANKS
from test_payout import AT, COMMITMENTS, DESTINATIONS, FRIENDS, balances, earn, planned, rows
from test_payout_command import Shell, earned, shell

from ledger.aggregates.payout import payout_id
from ledger.application import Ledger
from ledger.money import FEES, friend_account
from ledger.rails import OtherPayment, Payment
from ledger.rails.csv_file import HEADER, CsvRail, FileChangedError
from ledger.rails.given import given
from ledger.rails.journal import Journal
from ledger.rails.pain001 import Pain001Rail
from ledger.services import crew, payouts
from ledger.services.destinations import Destination
from ledger.services.disputes import adjust

__all__ = ["earned", "shell"]  # fixtures


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(ledger)
    return ledger


def file_of(folder: Path, number: int) -> CsvRail:
    return CsvRail(folder / f"{payout_id(number)}.csv")


def pay_lost(folder: Path, number: int, line: int, friend: int, amount_micro: int) -> None:
    """What a run did whose events are lost."""
    file_of(folder, number).submit(
        Payment(
            key=f"{payout_id(number)}:{line}",
            friend_id=FRIENDS[friend],
            amount_micro=amount_micro,
            unit="EUR",
            destination=DESTINATIONS[FRIENDS[friend]].text,
        )
    )


def run(ledger: Ledger, rail: Any, batch_id: UUID, folder: Path, where: Any = DESTINATIONS) -> list[str]:
    results = payouts.run(
        ledger, rail, batch_id, destinations=where, at_us=AT, given=given(folder), dry_run=False
    )
    return [r.state for r in results]


def paid_in_files(folder: Path) -> list[int]:
    found = dict.fromkeys(FRIENDS, 0)
    for path in folder.glob("*.csv"):
        for row in rows(path):
            found[UUID(row["friend_id"])] += int(row["amount_micro"])
    return list(found.values())


def test_the_same_plan_takes_up_what_was_paid(funded: Ledger, tmp_path: Path) -> None:
    amounts = balances(funded, "available")
    for n, amount in enumerate(amounts):
        pay_lost(tmp_path, 1, n + 1, n, amount)
    assert run(funded, file_of(tmp_path, 1), planned(funded), tmp_path) == ["confirmed"] * 3
    assert paid_in_files(tmp_path) == balances(funded, "paid") == amounts


def test_nothing_is_run_while_the_files_know_of_another_payout(funded: Ledger, tmp_path: Path) -> None:
    """The last friend was paid by a second payout, which the only one now would pay again."""
    amounts = balances(funded, "available")
    pay_lost(tmp_path, 2, 1, 2, amounts[2])
    batch_id = planned(funded)
    with pytest.raises(payouts.LostPayments, match=str(payout_id(2))):
        run(funded, file_of(tmp_path, 1), batch_id, tmp_path)
    assert balances(funded, "available") == amounts
    assert paid_in_files(tmp_path) == [0, 0, amounts[2]]


def test_nothing_is_run_while_the_files_know_of_more_lines(funded: Ledger, tmp_path: Path) -> None:
    """Two of three were to be paid then; now one has no destination, and would be paid again by the next payout."""
    amounts = balances(funded, "available")
    pay_lost(tmp_path, 1, 1, 0, amounts[0])
    pay_lost(tmp_path, 1, 2, 1, amounts[1])
    one = {FRIENDS[0]: COMMITMENTS[FRIENDS[0]]}
    plan = payouts.plan(funded, rail="csv", threshold_micro=1, destinations=one, at_us=AT)
    assert plan.batch_id is not None
    payouts.approve(funded, plan.batch_id, operator="op", at_us=AT)
    with pytest.raises(payouts.LostPayments, match="line 2"):
        run(funded, file_of(tmp_path, 1), plan.batch_id, tmp_path)
    assert balances(funded, "available") == amounts


@pytest.mark.parametrize("lost", [[0, 1, 2], [0]])
def test_another_payout_does_not_pay_who_was_paid_by_lost_lines_of_the_first(
    funded: Ledger, tmp_path: Path, lost: list[int]
) -> None:
    """The first payout, planned anew, leaves one out; the second would pay them what the first had paid already."""
    amounts = balances(funded, "available")
    for line, friend in enumerate(lost, 1):
        pay_lost(tmp_path, 1, line, friend, amounts[friend])
    rest = {f: c for f, c in COMMITMENTS.items() if f != FRIENDS[0]}
    made = []
    for where in (rest, COMMITMENTS):
        plan = payouts.plan(funded, rail="csv", threshold_micro=1, destinations=where, at_us=AT)
        assert plan.batch_id is not None
        payouts.approve(funded, plan.batch_id, operator="op", at_us=AT)
        made.append(plan.batch_id)
    for dry_run in (True, False):
        with pytest.raises(payouts.LostPayments, match=str(payout_id(1))):
            payouts.run(
                funded,
                file_of(tmp_path, 2),
                made[1],
                destinations=DESTINATIONS,
                at_us=AT,
                given=given(tmp_path),
                dry_run=dry_run,
            )
    with pytest.raises((payouts.LostPayments, OtherPayment)):
        run(funded, file_of(tmp_path, 1), made[0], tmp_path)
    assert balances(funded, "available") == amounts
    assert paid_in_files(tmp_path) == [amounts[i] if i in lost else 0 for i in range(3)]


def test_payouts_that_were_both_begun_are_taken_up_one_after_the_other(
    funded: Ledger, tmp_path: Path
) -> None:
    """Of each a line was paid and one was not: neither waits for the other for ever."""
    amounts = balances(funded, "available")
    most = max(amounts[0] + amounts[1], amounts[2])
    crew.change_settings(funded, {"payout_batch_max_micro": most}, at_us=AT)
    earn(funded, 1)
    plan = payouts.plan(funded, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT)
    batches = [p.batch_id for p in (plan, *plan.further)]
    assert len(batches) > 1
    for batch_id in batches:
        assert batch_id is not None
        payouts.approve(funded, batch_id, operator="op", at_us=AT)
    whole = balances(funded, "available")
    for number in range(1, 1 + len(batches)):
        pay_lost(tmp_path, number, 1, number - 1, whole[number - 1])
    done: list[str] = []
    for _ in range(3):
        done = []
        for number, batch_id in enumerate(batches, 1):
            assert batch_id is not None
            try:
                done += run(funded, file_of(tmp_path, number), batch_id, tmp_path)
            except payouts.LostPayments:
                done.append("lost")
    assert set(done) == {"confirmed"}
    assert paid_in_files(tmp_path) == balances(funded, "paid") == whole


@pytest.mark.parametrize("first", ["csv", "pain.001"])
def test_what_one_rail_paid_is_not_paid_by_another(funded: Ledger, tmp_path: Path, first: str) -> None:
    amounts = balances(funded, "available")
    bank = Pain001Rail(tmp_path, str(payout_id(1)), debtor=DEBTOR, created_us=AT)
    if first == "csv":
        pay_lost(tmp_path, 1, 1, 0, amounts[0])
        rail: Any = bank
    else:
        where = BANKS[FRIENDS[0]].text
        bank.submit(
            Payment(
                key=f"{payout_id(1)}:1",
                friend_id=FRIENDS[0],
                amount_micro=1_000_000,
                unit="EUR",
                destination=where,
            )
        )
        rail = file_of(tmp_path, 1)
    plan = payouts.plan(
        funded, rail=rail.name, threshold_micro=1, destinations=COMMITMENTS, at_us=AT, quantum_micro=10_000
    )
    assert plan.batch_id is not None
    payouts.approve(funded, plan.batch_id, operator="op", at_us=AT)
    with pytest.raises(payouts.LostPayments, match=first):
        run(funded, rail, plan.batch_id, tmp_path)
    assert balances(funded, "available") == amounts


def test_a_payout_whose_run_was_lost_is_not_cancelled(funded: Ledger, tmp_path: Path) -> None:
    batch_id = planned(funded)
    pay_lost(tmp_path, 1, 1, 0, balances(funded, "available")[0])
    for dry_run in (True, False):
        with pytest.raises(payouts.LostPayments, match="line 1"):
            payouts.cancel(funded, batch_id, reason="no", at_us=AT, given=given(tmp_path), dry_run=dry_run)
    assert run(funded, file_of(tmp_path, 1), batch_id, tmp_path) == ["confirmed"] * 3


@pytest.mark.parametrize("why", ["destination", "amount"])
def test_a_line_that_was_paid_does_not_fail_unasked(funded: Ledger, tmp_path: Path, why: str) -> None:
    """Failed for its new destination, or for what is no longer there, it would be paid again by the next payout."""
    amounts = balances(funded, "available")
    batch_id = planned(funded)
    pay_lost(tmp_path, 1, 2, 1, amounts[1])
    where = dict(DESTINATIONS)
    if why == "destination":
        where[FRIENDS[1]] = Destination("elsewhere", bytes(16))
    else:
        source = friend_account(FRIENDS[1], "available")
        adjust(funded, source=source, target=FEES, amount_micro=1, reference="a", reason="x", at_us=AT)
    before = balances(funded, "available")
    with pytest.raises(OtherPayment):
        run(funded, file_of(tmp_path, 1), batch_id, tmp_path, where)
    assert balances(funded, "available") == before
    assert paid_in_files(tmp_path) == [0, amounts[1], 0]


def test_all_files_of_the_folder_are_read_and_no_others(tmp_path: Path) -> None:
    assert given(tmp_path / "none") == {}
    pay_lost(tmp_path, 1, 1, 0, 5)
    Journal(tmp_path / f"{payout_id(2)}.pain001").add(f"{payout_id(2)}:3", lambda _: {"file": 1})
    chain = Journal(tmp_path / "evm.journal")
    chain.add(f"{payout_id(3)}:1", lambda _: {"nonce": 0})
    chain.add(f"{payout_id(3)}:1#2", lambda _: {"nonce": 0})
    chain.add(f"{payout_id(3)}:2", lambda _: {"refused": "no address"})
    (tmp_path / "notes.csv").write_text("mine")
    assert given(tmp_path) == {
        payout_id(1): {"csv": {1}},
        payout_id(2): {"pain.001": {3}},
        payout_id(3): {"eip155": {1}},
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b",", b";"),
        lambda data: data.removeprefix(HEADER),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(str(payout_id(1)).encode(), b'"' + str(payout_id(1)).encode()),
        lambda data: data + b"\n",
    ],
)
def test_a_file_that_a_spreadsheet_wrote_anew_is_not_paid_from(tmp_path: Path, change: Any) -> None:
    """Its keys would not be found, and the lines be written, and paid, a second time."""
    pay_lost(tmp_path, 1, 1, 0, 5)
    path = tmp_path / f"{payout_id(1)}.csv"
    path.write_bytes(changed := change(path.read_bytes()))
    with pytest.raises(FileChangedError, match="another program"):
        file_of(tmp_path, 1).look_up(f"{payout_id(1)}:1")
    with pytest.raises(FileChangedError):
        pay_lost(tmp_path, 1, 1, 0, 5)
    with pytest.raises(FileChangedError):
        given(tmp_path)
    assert path.read_bytes() == changed


def test_the_commands_say_that_the_database_is_older(earned: Ledger, shell: Shell, tmp_path: Path) -> None:
    shell("destination", "Anna", "DE02 1203 0000 0000 2020 51")
    shell("plan")
    shell("approve", "1")
    assert shell.json("run", "1")["lines"][0]["state"] == "confirmed"
    pay_lost(tmp_path / "payouts", 2, 1, 0, 5)
    for options in ([], ["--dry-run"]):
        assert "older than what was paid" in shell("run", "1", *options, code=5)
