"""What the read API answers, on a real ledger with real aggregates."""

import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from histories import MOVES, OPENING, History, Log, Move, named
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import forget, rows_of
from sqlalchemy import Engine, inspect
from sqlalchemy import event as sql_event

from hub.embedded.postgres import EmbeddedPostgres
from ledger.aggregates.book import Book
from ledger.aggregates.node import Node
from ledger.application import Ledger, LogGapError, Unavailable
from ledger.event_codec import UnknownEventError
from ledger.events import transfers_of
from ledger.ids import BOOK_ID, node_id
from ledger.store.database import create_sql_engine
from ledger.store.migrate import migrate
from projections import schema, tracking
from projections.balances import Balances
from projections.catalog import PROJECTIONS
from projections.fold import ProjectionError
from projections.queries import Queries, ReadModelUnavailable
from projections.rebuild import rebuild
from projections.runner import Runner
from projections.schema import NEXT, Tables

T = TypeVar("T")


def queries_after(moves: list[Move], engine: Engine) -> tuple[History, Queries]:
    history = History()
    log = Log(history.play([*OPENING, *moves]))
    for projection in PROJECTIONS:
        forget(engine, projection)
    Runner(log, engine).catch_up()
    return history, Queries(engine)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 200)), max_size=40))
def test_balances_are_the_book_and_an_independent_fold_and_sum_to_zero(
    engine: Engine, moves: list[Move]
) -> None:
    history = History()
    log = Log(history.play([*OPENING, *moves]))
    forget(engine, Balances)
    Runner(log, engine, projections=[Balances]).catch_up()
    folded: dict[str, int] = defaultdict(int)
    for event in history.events:
        for transfer in transfers_of(event):
            for account, amount in [(p.account, p.amount_micro) for p in transfer.postings]:
                folded[account] += amount
    balances = {b.account: b.amount_micro for b in Queries(engine).balances()}
    assert balances == folded
    assert balances == history.book.accounts
    assert sum(balances.values()) == 0


def test_a_statement_adds_up_to_the_friends_accounts_and_pages_through(engine: Engine) -> None:
    moves = [("serve", n) for n in range(12)] + [
        ("settle", 0),
        ("release", 0),
        ("plan_payout", 1),
        ("pay", 3),
        ("give_back", 0),
    ]
    history, queries = queries_after([("deposit", 199), *moves], engine)
    for friend in {n.friend_id for n in history.nodes}:
        lines = queries.statement(friend, limit=1000)
        total = defaultdict(int)
        for line in lines:
            total[line.kind] += line.amount_micro
        held = {
            pot: history.book.balance(f"friend:{friend}:{pot}")
            for pot in ("pending", "available", "in_flight", "paid")
        }
        adjusted = total["adjusted_up"] - total["adjusted_down"]
        assert total["earned"] + adjusted - total["dispute_upheld"] == sum(held.values())
        assert total["released"] == total["earned"] - held["pending"]
        assert total["payout_confirmed"] - total["payout_returned"] == held["paid"]
        assert [(x.position, x.line) for x in lines] == sorted(
            ((x.position, x.line) for x in lines), reverse=True
        )
        paged, before = [], None
        while page := queries.statement(friend, limit=2, before=before):
            paged += page
            before = (page[-1].position, page[-1].line)
        assert paged == lines


def test_a_node_shows_its_friend_its_state_and_what_it_delivered(engine: Engine) -> None:
    history, queries = queries_after([("probe", 0)] * 2 + [("presence", 0), ("refuse", 0)], engine)
    node = history.nodes[0]
    view = queries.node(node.id)
    assert view is not None
    assert (view.friend_id, view.state, view.probes_ok, view.probes_bad) == (node.friend_id, "online", 2, 0)
    assert view.verdicts["unknown_ticket"] == 1
    assert view.receipts_accepted == view.verdicts["accepted"]
    assert view.receipts_refused == sum(view.verdicts.values()) - view.receipts_accepted
    assert view.last_position == len(history.events) - 1
    assert view.health < queries_after([("probe", 0)] * 2, engine)[1].node(node.id).health
    assert queries.node(uuid4()) is None


@pytest.mark.parametrize(("number", "state"), [(8, "suspended"), (20, "retired")])
def test_a_suspended_or_retired_node_is_shown_as_such_whether_online_or_not(
    engine: Engine, number: int, state: str
) -> None:
    history, queries = queries_after([("presence", 0), ("presence", number)], engine)
    view = queries.node(history.nodes[0].id)
    assert view is not None
    assert view.state == state
    assert view.state_reason


def test_a_stream_shows_its_broadcast_while_live_and_its_totals_for_good(engine: Engine) -> None:
    history, queries = queries_after([("watch", 0), ("interrupt", 1)], engine)
    live = queries.stream("alpha")
    assert live is not None
    assert (live.state, live.interrupted, live.broadcast_id) == ("LIVE", True, history.broadcasts[0].id)
    assert (live.segments, live.published_bytes, live.last_sequence) == (3, 3 * 1002, 2)
    assert (live.sessions, live.broadcasts, live.ended_us) == (1, 1, None)

    _, queries = queries_after([("watch", 0), ("go_offline", 0)], engine)
    over = queries.stream("alpha")
    assert over is not None
    assert (over.state, over.interrupted, over.broadcast_id) == ("OFFLINE", False, None)
    assert over.ended_us is not None
    assert over.segments == 3
    assert queries.stream("nobody") is None
    assert [s.slug for s in queries.streams()] == ["alpha"]


@pytest.mark.parametrize(("number", "outcome"), [(0, "confirmed"), (4, "failed"), (8, "unknown")])
def test_a_payout_shows_each_line_with_what_the_rail_said(engine: Engine, number: int, outcome: str) -> None:
    # The opening paid line 1 of 2, with an unknown outcome; now it is reconciled.
    history, queries = queries_after([("pay", number)], engine)
    (newest,) = queries.payouts()
    payout = queries.payout(newest.batch_id)
    assert payout is not None
    assert (newest.lines, newest.line_count) == ((), 2)
    assert (payout.planned_by, payout.decided_by) == ("planner", "op")
    first, second = payout.lines
    assert (first.state, first.outcome, first.attempts) == (outcome, outcome, 2)
    assert (first.reference, first.attempt_key) == ("bank 7", "key 2")
    assert (second.state, second.outcome, second.attempts) == ("planned", "", 0)
    assert payout.state == "approved"
    assert payout.confirmed_micro == (first.amount_micro if outcome == "confirmed" else 0)
    assert payout.failed_micro == (first.amount_micro if outcome == "failed" else 0)
    assert payout.total_micro == first.amount_micro + second.amount_micro
    assert history.book.balance(f"friend:{first.friend_id}:in_flight") == (
        first.amount_micro if outcome == "unknown" else 0
    )
    assert queries.payout(uuid4()) is None


def test_a_payout_and_its_lines_are_of_one_position(engine: Engine) -> None:
    history, _ = queries_after([], engine)
    (batch_id, _, _) = history.batches[0]
    paid = Log(history.play([("pay", 0), ("pay", 1)]))

    asked: list[str] = []

    def meanwhile(*arguments: object) -> None:
        if "FROM crew_main.read_payouts" in (statement := str(arguments[2])):
            asked.append(statement)
            Runner(paid, engine).catch_up()

    sql_event.listen(engine, "after_cursor_execute", meanwhile)
    try:
        before = Queries(engine).payout(batch_id)
    finally:
        sql_event.remove(engine, "after_cursor_execute", meanwhile)
    assert len(asked) == 1
    after = Queries(engine).payout(batch_id)
    assert [(p.state, {line.state for line in p.lines}) for p in (before, after)] == [
        ("approved", {"unknown", "planned"}),
        ("finished", {"confirmed", "failed"}),
    ]


def test_a_payout_is_finished_when_every_line_is_confirmed_or_failed(engine: Engine) -> None:
    _, queries = queries_after([("pay", 0), ("pay", 1)], engine)
    (payout,) = queries.payouts()
    assert payout.state == "finished"


def test_what_came_back_of_a_payout_stands_beside_what_was_confirmed(engine: Engine) -> None:
    history, queries = queries_after([("pay", 0), ("pay", 1), ("give_back", 2), ("give_back", 1)], engine)
    (newest,) = queries.payouts()
    payout = queries.payout(newest.batch_id)
    assert payout is not None
    first, second = payout.lines
    assert newest.returned_micro == payout.returned_micro == first.returned_micro == first.amount_micro
    assert (first.state, second.returned_micro) == ("confirmed", 0)
    assert (payout.state, payout.confirmed_micro) == ("finished", first.amount_micro)
    two, one = [x for x in queries.statement(first.friend_id) if x.kind == "payout_returned"]
    assert (one.reason, one.batch_id, one.payout_line) == ("account closed", payout.batch_id, first.line)
    assert (one.amount_micro, one.amount_micro + two.amount_micro) == (3, first.amount_micro)
    assert history.book.balance(f"friend:{first.friend_id}:paid") == 0


def test_a_correction_says_why(engine: Engine) -> None:
    history, queries = queries_after([], engine)  # the opening has one
    reasons = {
        line.reason
        for node in history.nodes
        for line in queries.statement(node.friend_id)
        if line.kind.startswith("adjusted")
    }
    assert reasons <= {"corrected"}
    history, queries = queries_after([("adjust", n) for n in range(6)], engine)
    reasons = {
        line.reason
        for node in history.nodes
        for line in queries.statement(node.friend_id)
        if line.kind.startswith("adjusted")
    }
    assert reasons == {"corrected"}


def test_a_node_says_what_was_refused_and_why(engine: Engine) -> None:
    history, queries = queries_after([("refuse", 1), ("serve", 8)], engine)  # 8: capped, own account
    judged = [j for e in history.events for j in getattr(e, "judged", ())]
    views = queries.nodes()
    answers = sum((Counter(v.verdicts) for v in views), Counter())
    assert answers == Counter(str(j.verdict) for j in judged)
    assert answers["unknown_ticket"] == answers["capped"] == 1
    assert queries.node(history.nodes[0].id).caps == {"own_account": 1}
    assert sum(v.credited_bytes for v in views) == sum(j.credited_bytes for j in judged)


def test_what_earlier_programs_kept_goes_and_does_not_come_back(ledger: Ledger, own_engine: Engine) -> None:
    Runner(ledger, own_engine, projections=[Balances]).prepare()
    with own_engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE crew_main.read_verdicts (n bigint)")
        connection.exec_driver_sql("INSERT INTO crew_main.read_positions VALUES ('verdicts', 1, 7)")
    Runner(ledger, own_engine).catch_up()
    with own_engine.connect() as connection:
        names = inspect(connection).get_table_names(schema="crew_main")
        kept = set(connection.exec_driver_sql("SELECT name FROM crew_main.read_positions").scalars())
    assert "read_verdicts" not in names
    assert kept == {p.name for p in PROJECTIONS}


# --- with the real ledger and a runner in its own thread -------------------------------------------------------------


@pytest.fixture
def running(ledger: Ledger, own_engine: Engine) -> Iterator[Runner]:
    runner = Runner(ledger, own_engine)
    runner.prepare()
    stop = threading.Event()
    thread = threading.Thread(target=runner.run, args=(stop,))
    thread.start()
    yield runner
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def deposit(ledger: Ledger, stream: UUID, reference: str) -> int:
    book = ledger.load_or_new(Book, BOOK_ID)
    book.deposit(stream, amount_micro=1_000, reference=reference, at_us=1)
    return ledger.save(book)[-1]


def test_you_read_your_own_writes(ledger: Ledger, own_engine: Engine, running: Runner) -> None:
    queries = Queries(own_engine)
    for n in range(1, 6):
        position = deposit(ledger, named("stream", 0), f"r{n}")
        assert queries.wait(position, 5)
        balance = queries.balance("external")
        assert balance is not None
        assert (balance.amount_micro, balance.last_position) == (-1_000 * n, position)
    assert not queries.wait(position + 1, 0.05)
    lags = queries.lag(ledger, now_us=time.time_ns() // 1000)
    assert {(x.name, x.events, x.behind_us) for x in lags} == {(p.name, 0, 0) for p in PROJECTIONS}


def test_lag_is_counted_in_events_and_in_the_age_of_the_oldest_not_applied(
    ledger: Ledger, own_engine: Engine
) -> None:
    runner, queries = Runner(ledger, own_engine), Queries(own_engine)
    runner.prepare()
    node = Node(node_id(bytes(32)))
    node.join(
        public_key=bytes(32), friend_id=uuid4(), invite_id=uuid4(), prefix_commitment=bytes(16), at_us=1_000
    )
    node.go_online(at_us=5_000)
    ledger.save(node)
    assert {(x.events, x.behind_us) for x in queries.lag(ledger, now_us=9_000)} == {(2, 8_000)}
    runner.catch_up()
    assert {(x.events, x.behind_us) for x in queries.lag(ledger, now_us=9_000)} == {(0, 0)}


def test_a_rebuild_beside_a_running_runner_ends_with_the_same_rows(
    ledger: Ledger, own_engine: Engine, running: Runner
) -> None:
    queries, stop = Queries(own_engine), threading.Event()
    written: list[int] = []

    def write() -> None:
        while not stop.is_set():
            written.append(deposit(ledger, named("stream", len(written) % 3), f"d{len(written)}"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            rebuild(ledger, own_engine, PROJECTIONS, batch_events=7)
    finally:
        stop.set()
        writer.join()
    assert queries.wait(written[-1], 10)
    live = rows_of(own_engine, PROJECTIONS)
    rebuild(ledger, own_engine, PROJECTIONS)
    assert rows_of(own_engine, PROJECTIONS) == live
    assert queries.balance("external").amount_micro == -1_000 * len(written)


def test_readers_never_meet_an_empty_or_missing_table_during_a_rebuild(
    ledger: Ledger, own_engine: Engine
) -> None:
    deposit(ledger, named("stream", 0), "only")
    Runner(ledger, own_engine).catch_up()
    queries, stop = Queries(own_engine), threading.Event()
    seen: set[int | None] = set()

    def look() -> None:
        while not stop.is_set():
            balance = queries.balance("external")
            seen.add(balance.amount_micro if balance else None)

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(4):
        rebuild(ledger, own_engine, PROJECTIONS)
    stop.set()
    reader.join()
    assert seen == {-1_000}


def test_an_event_this_program_cannot_read_stops_the_runner_before_it(
    ledger: Ledger, database_url: str, own_engine: Engine
) -> None:
    deposit(ledger, named("stream", 0), "before")
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "SELECT * FROM crew_main.append_events(%s::uuid[], %s::bigint[], %s::text[], %s::bytea[])",
            ([uuid4()], [1], ["future.thing.v9"], [b"\x80"]),
        )
    runner = Runner(ledger, own_engine)
    with pytest.raises(UnknownEventError, match=r"position 1.*future\.thing\.v9"):
        runner.run(threading.Event())
    assert Queries(own_engine).positions() == {p.name: 1 for p in PROJECTIONS}
    assert {(x.events, x.behind_us) for x in Queries(own_engine).lag(ledger, now_us=5)} == {(1, 5)}


def test_the_age_of_an_event_from_a_newer_program_is_known(
    ledger: Ledger, database_url: str, own_engine: Engine
) -> None:
    Runner(ledger, own_engine).prepare()
    with psycopg.connect(database_url) as connection:
        state = msgspec.msgpack.encode({"type": "future.thing.v9", "wings": 2, "at_us": 1_000})
        connection.execute(
            "SELECT * FROM crew_main.append_events(%s::uuid[], %s::bigint[], %s::text[], %s::bytea[])",
            ([uuid4()], [1], ["future.thing.v9"], [state]),
        )
    lags = Queries(own_engine).lag(ledger, now_us=9_000)
    assert {(x.events, x.behind_us) for x in lags} == {(1, 8_000)}


def test_read_models_of_a_longer_log_are_refused(
    ledger: Ledger, database_url: str, own_engine: Engine
) -> None:
    """A log that came from an older backup than the read models: what follows would not follow."""
    for n in range(3):
        deposit(ledger, named("stream", 0), f"r{n}")
    runner = Runner(ledger, own_engine)
    assert runner.catch_up() == 3
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE crew_main.events DISABLE TRIGGER ALL")
        connection.execute("DELETE FROM crew_main.events WHERE position = 2")
    with pytest.raises(LogGapError, match="ends at 2"):
        runner.step()
    rebuild(ledger, own_engine, PROJECTIONS)
    assert runner.catch_up() == 2
    assert Queries(own_engine).balance("external").amount_micro == -2_000


def test_a_projection_that_stopped_goes_on_when_it_was_rebuilt(
    own_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History()
    log = Log(history.play(OPENING))
    runner = Runner(log, own_engine, batch_events=5)
    with monkeypatch.context() as patched:
        patched.setattr("projections.base.check_balanced", refuse)
        runner.catch_up()
        assert set(runner.stopped) == {"balances"}
        runner.catch_up()
    assert Queries(own_engine).positions()["balances"] == 0
    rebuild(log, own_engine, [Balances])
    more = Log(history.play([("deposit", 7)]))
    runner._log = more
    assert runner.catch_up() == more.size()
    assert runner.stopped == {}
    assert set(Queries(own_engine).positions().values()) == {more.size()}


def test_a_projection_that_stopped_says_why_to_every_process(
    own_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(History().play(OPENING))
    elsewhere = Queries(own_engine)
    with monkeypatch.context() as patched:
        patched.setattr("projections.base.check_balanced", refuse)
        Runner(log, own_engine).catch_up()
        Runner(log, own_engine).catch_up()  # a start: it is tried again, and stops again
    assert stopped(elsewhere, log) == {"balances": "not today"}
    Runner(log, own_engine).catch_up()  # a program that can go on
    assert stopped(elsewhere, log) == {}


def test_a_rebuild_strikes_out_why_a_projection_stopped(
    own_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(History().play(OPENING))
    with monkeypatch.context() as patched:
        patched.setattr("projections.base.check_balanced", refuse)
        Runner(log, own_engine).catch_up()
    rebuild(log, own_engine, [Balances])
    assert stopped(Queries(own_engine), log) == {}


def test_positions_of_before_there_were_reasons_are_kept(ledger: Ledger, own_engine: Engine) -> None:
    deposit(ledger, named("stream", 0), "only")
    Runner(ledger, own_engine).catch_up()
    with own_engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE crew_main.read_positions DROP COLUMN stopped")
    Runner(ledger, own_engine).prepare()
    assert Queries(own_engine).positions() == {p.name: 1 for p in PROJECTIONS}


def test_nobody_waits_for_a_projection_that_this_program_does_not_have(
    ledger: Ledger, own_engine: Engine
) -> None:
    position = deposit(ledger, named("stream", 0), "only")
    Runner(ledger, own_engine).catch_up()
    with own_engine.begin() as connection:
        tracking.put(connection, Tables("crew_main"), "removed", 1, 0)
    queries = Queries(own_engine)
    assert queries.wait(position, 0)
    assert not queries.wait(position + 1, 0)
    assert {lag.name for lag in queries.lag(ledger, now_us=1)} == {p.name for p in PROJECTIONS}


def stopped(queries: Queries, log: Log) -> dict[str, str]:
    return {lag.name: lag.stopped for lag in queries.lag(log, now_us=1) if lag.stopped}


def refuse(*_: object) -> None:
    raise ProjectionError("not today")


def test_what_somebody_left_beside_the_live_tables_is_not_built_upon(
    ledger: Ledger, own_engine: Engine
) -> None:
    deposit(ledger, named("stream", 0), "only")
    with own_engine.begin() as connection:
        schema.create(connection, Balances.tables(Tables("crew_main", NEXT)))
        connection.exec_driver_sql("INSERT INTO crew_main.read_balances__next VALUES ('ghost', 1, 1)")
    Runner(ledger, own_engine, projections=[Balances]).prepare()
    rebuild(ledger, own_engine, [Balances])
    assert "ghost" not in {b.account for b in Queries(own_engine).balances()}


def test_the_runner_sits_out_a_restart_of_postgres(server_dir: Path) -> None:
    server = EmbeddedPostgres(server_dir / "restarted")
    url = server.start()
    migrate(url)
    ledger, engine, stop = Ledger(url), create_sql_engine(url), threading.Event()
    runner, queries = Runner(ledger, engine), Queries(engine)
    thread = threading.Thread(target=runner.run, args=(stop,))
    try:
        first = deposit(ledger, named("stream", 0), "before")
        thread.start()
        assert until_true(lambda: queries.wait(first, 10))
        server.stop()
        with pytest.raises(ReadModelUnavailable):
            queries.balances()
        assert server.start() == url
        second = until_true(lambda: deposit(ledger, named("stream", 0), "after"))
        assert until_true(lambda: queries.wait(second, 10))
        assert [b.amount_micro for b in queries.balances()] == [2_000, -2_000]
    finally:
        stop.set()
        thread.join(10)
        ledger.close()
        engine.dispose()
        server.stop()


def until_true(ask: Callable[[], T]) -> T:
    """The first true answer, whatever was not available before."""
    while True:
        with contextlib.suppress(Unavailable, ReadModelUnavailable):
            if answer := ask():
                return answer


def test_questions_before_the_first_build_are_refused_as_transient(own_engine: Engine) -> None:
    with pytest.raises(ReadModelUnavailable):
        Queries(own_engine).balances()
