"""One byte, one amount, one event altered in Postgres or in the published files: the audit names where."""

import asyncio
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from fold import fold
from house import SLUG, House, until

from hub.clock import now_us
from hub.keystore import KeyStore
from ledger.application import Ledger
from ledger.store.migrate import migrate
from ledger.tlog.publisher import Publisher, PublishRefused
from relay.viewers import SigningViewer


@pytest.fixture(scope="module")
def told(hub: House) -> House:
    """The hub after a short broadcast that two viewers watched, settled and published."""

    async def scenario() -> None:
        hub.start_node(hub.invite("ana"))
        await until(lambda: hub.nodes_online() == 1, 30, "the node is online")
        publisher = hub.publish()
        await until(lambda: hub.state() == "LIVE", 30, "live")
        async with (
            SigningViewer(hub.base, SLUG, receipt_interval_s=1.0) as one,
            SigningViewer(hub.base, SLUG, receipt_interval_s=1.0) as other,
        ):
            await one.wait_for_segments(3, 40)
            await other.wait_for_segments(3, 40)
        publisher.stop()
        await until(settled, 30, "settled and published")

    def settled() -> bool:
        with hub.connect() as connection:
            now = fold(connection)
        return now.settled_to > now.last_credit > 0 and hub.checkpoint_size() > now.last_transfer

    asyncio.run(scenario())
    assert hub.hub is not None
    assert hub.kill("worker")  # nothing more is appended by itself; the supervisor brings it back
    return hub


def rows(connection: psycopg.Connection[Any], topic: str) -> list[tuple[int, bytes]]:
    query = "SELECT position, state FROM crew_main.events WHERE topic = %s ORDER BY position"
    return connection.execute(query, (topic,)).fetchall()


def write(connection: psycopg.Connection[Any], position: int, state: bytes) -> None:
    connection.execute("UPDATE crew_main.events SET state = %s WHERE position = %s", (state, position))


def one_byte_of_a_receipt(connection: psycopg.Connection[Any]) -> int:
    position, state = rows(connection, "delivery.segments_served.v2")[0]
    event = msgspec.msgpack.decode(state)
    receipts = bytearray(event["receipts"])
    receipts[120] ^= 1  # in the digest, under the viewer's signature
    write(connection, position, state.replace(event["receipts"], bytes(receipts)))
    return position


def one_amount(connection: psycopg.Connection[Any]) -> int:
    for position, state in rows(connection, "book.epoch_settled.v1"):
        event = msgspec.msgpack.decode(state)
        if not event["lines"]:
            continue
        postings = event["transfers"][0][1]
        postings[0][1] -= 1
        postings[-1][1] += 1  # it still sums to zero
        write(connection, position, msgspec.msgpack.encode(event))
        return position
    raise AssertionError("no epoch with lines")


def credited_units(connection: psycopg.Connection[Any]) -> int:
    position, state = rows(connection, "delivery.segments_served.v2")[0]
    event = msgspec.msgpack.decode(state)
    units = int.from_bytes(event["units"][:2], "big") + 1
    event["units"] = units.to_bytes(2, "big") + event["units"][2:]
    write(connection, position, msgspec.msgpack.encode(event))
    return position


def a_deposit(connection: psycopg.Connection[Any]) -> int:
    """A larger budget, consistently: only the books after it can tell."""
    position, state = rows(connection, "book.budget_deposited.v1")[0]
    event = msgspec.msgpack.decode(state)
    for posting in event["transfer"][1]:
        posting[1] *= 2
    write(connection, position, msgspec.msgpack.encode(event))
    return position


def an_event_less(connection: psycopg.Connection[Any]) -> int:
    position, _ = rows(connection, "broadcast.segments_published.v1")[0]
    connection.execute("DELETE FROM crew_main.events WHERE position = %s", (position,))
    connection.execute("UPDATE crew_main.events SET position = -position WHERE position > %s", (position,))
    connection.execute("UPDATE crew_main.events SET position = -position - 1 WHERE position < 0")
    return position


ALTERATIONS = [one_byte_of_a_receipt, one_amount, credited_units, a_deposit, an_event_less]


@pytest.fixture
def copied(told: House) -> Iterator[str]:
    """A copy of the hub's database as somebody with a superuser's rights can have it, unlocked."""
    with told.connect() as connection:
        yield copy_events(told.database_url, "altered", connection)
    with told.connect() as connection:
        connection.execute("DROP DATABASE altered WITH (FORCE)")


def copy_events(url: str, name: str, connection: psycopg.Connection[Any]) -> str:
    """The events in a database of their own (as a template a database must have no users, and the hub is one)."""
    connection.execute(f"CREATE DATABASE {name}")
    copy = url.replace("/streamrp2p?", f"/{name}?")
    migrate(copy)
    with (
        psycopg.connect(copy, autocommit=True) as target,
        target.cursor() as writer,
        connection.cursor() as reader,
    ):
        columns = "position, originator_id, originator_version, topic, state"
        with (
            reader.copy(
                f"COPY (SELECT {columns} FROM crew_main.events ORDER BY position) TO STDOUT (FORMAT binary)"
            ) as out,
            writer.copy(f"COPY crew_main.events ({columns}) FROM STDIN (FORMAT binary)") as into,
        ):
            for block in out:
                into.write(block)
        target.execute("ALTER TABLE crew_main.events DISABLE TRIGGER ALL")
        target.execute("ALTER TABLE crew_main.events DROP CONSTRAINT events_position_check")
    return copy


def publisher(house: House, url: str, folder: Path) -> tuple[Publisher, Ledger]:
    keys = KeyStore.open(house.data_dir / "keys")
    ledger = Ledger(url)
    origin = (house.data_dir / "keys" / "log.origin").read_text().strip()
    return Publisher(ledger, folder, keys.log, origin), ledger


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_an_audit_names_what_was_altered_in_postgres(
    told: House, copied: str, tmp_path: Path, alter: Callable[[psycopg.Connection[Any]], int]
) -> None:
    shutil.copytree(told.data_dir / "log", kept := tmp_path / "kept")
    with psycopg.connect(copied, autocommit=True) as connection:
        position = alter(connection)
    publish, ledger = publisher(told, copied, kept)
    try:
        with pytest.raises(PublishRefused):  # it would fork the log
            publish.publish(at_us=now_us())
        forged, ledger2 = publisher(told, copied, tmp_path / "anew")
        forged.publish(at_us=now_us())  # with the hub's own key: the worst case
        ledger2.close()
    finally:
        ledger.close()
    report = told.audit(str(tmp_path / "anew"))
    assert report["exit"] == 5, report
    assert report["problem"]["position"] >= position
    if alter not in (a_deposit, an_event_less):  # these show in what follows from them
        assert report["problem"]["position"] == position
    since = told.run(
        "audit", str(tmp_path / "anew"), "--since", str(tmp_path / "kept" / "checkpoint"), "--json", ok=(5,)
    )
    assert '"problem": {' in since


def test_the_database_itself_refuses_changes_to_the_log(told: House) -> None:
    for statement in (
        "UPDATE crew_main.events SET topic = 'x' WHERE position = 3",
        "DELETE FROM crew_main.events WHERE position = 3",
        "TRUNCATE crew_main.events",
        "SET session_replication_role = replica; DELETE FROM crew_main.events WHERE position = 3",
    ):
        with told.connect() as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


def last(partial: Iterable[Path]) -> Path:
    """The widest of the partial tiles: the one that the checkpoint covers."""
    return max(partial, key=lambda path: int(path.name))


def test_any_published_file_with_one_byte_altered_fails_the_audit(told: House, tmp_path: Path) -> None:
    shutil.copytree(told.data_dir / "log", tmp_path / "log")
    assert told.audit(str(tmp_path / "log"))["exit"] == 0
    entries = next((tmp_path / "log" / "tile" / "entries").rglob("*.p")).iterdir()
    tiles = next((tmp_path / "log" / "tile" / "0").rglob("*.p")).iterdir()
    files = [tmp_path / "log" / "checkpoint", tmp_path / "log" / "vkey", last(entries), last(tiles)]
    for path in files:
        good = path.read_bytes()
        path.write_bytes(
            good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :]
        )
        report = told.audit(str(tmp_path / "log"))
        assert report["exit"] == 5, (path, report)
        assert report["problem"]["position"] is not None or report["problem"]["file"]
        path.write_bytes(good)


def test_altered_balances_mislead_nobody_for_long(told: House) -> None:
    with told.connect() as connection:
        right = fold(connection).money
        connection.execute("UPDATE crew_main.read_balances SET amount_micro = amount_micro + 1")
    assert told.audit()["exit"] == 0
    assert told.balances() != right
    told.run("projections", "rebuild")
    assert told.balances() == right
