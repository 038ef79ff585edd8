"""What every projection keeps: the rows follow from the events, whatever happens on the way."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from histories import MOVES, OPENING, History, Log, Move
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import forget, position_of, rows_of
from sqlalchemy import Engine, event

from ledger.event_codec import EVENT_TYPES, UPCASTERS, UnknownEventError
from ledger.events import Event
from projections.base import Projection
from projections.catalog import PROJECTIONS
from projections.rebuild import rebuild
from projections.runner import Runner

moves = st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 200)), max_size=40)
some = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Killed(BaseException):
    """The process died here."""


@pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda p: p.name)
class TestProjection:
    @some
    @given(moves=moves, cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
    def test_any_batches_give_the_rows_of_a_rebuild_from_scratch(
        self, engine: Engine, projection: type[Projection], moves: list[Move], cuts: list[int]
    ) -> None:
        log = history(moves)
        forget(engine, projection)
        runner = a_runner(log, engine, projection)
        for cut in cuts:
            runner._batch_events = cut
            runner.step()
        runner.catch_up()
        incremental = rows_of(engine, [projection])
        assert position_of(engine, projection.name) == log.size()

        rebuild(log, engine, [projection], batch_events=10_000)
        assert rows_of(engine, [projection]) == incremental
        assert position_of(engine, projection.name) == log.size()

    @some
    @given(moves=moves, at=st.integers(0, 40), batch=st.integers(3, 20))
    def test_killed_at_any_statement_or_commit_it_neither_skips_nor_repeats(
        self, engine: Engine, projection: type[Projection], moves: list[Move], at: int, batch: int
    ) -> None:
        log = history(moves)
        forget(engine, projection)
        a_runner(log, engine, projection).catch_up()
        expected = rows_of(engine, [projection])
        for killed in (killed_before_statement, killed_before_commit, killed_after_commit):
            forget(engine, projection)
            runner = a_runner(log, engine, projection, batch_events=batch)
            runner.prepare()
            with killed(engine, at):
                try:
                    runner.catch_up()
                except Killed:
                    runner = a_runner(log, engine, projection, batch_events=batch)
            runner.catch_up()
            assert rows_of(engine, [projection]) == expected

    def test_the_same_runner_goes_on_after_a_failed_batch(
        self, engine: Engine, projection: type[Projection]
    ) -> None:
        log = history([])
        forget(engine, projection)
        a_runner(log, engine, projection).catch_up()
        expected = rows_of(engine, [projection])
        for killed in (killed_before_statement, killed_before_commit, killed_after_commit):
            forget(engine, projection)
            runner = a_runner(log, engine, projection, batch_events=4)
            runner.step()
            with killed(engine, 1), pytest.raises(Killed):
                runner.catch_up()
            runner.catch_up()
            assert rows_of(engine, [projection]) == expected

    def test_two_runners_in_turn_neither_skip_nor_repeat(
        self, engine: Engine, projection: type[Projection]
    ) -> None:
        log = history([("probe", n) for n in range(20)])
        forget(engine, projection)
        a_runner(log, engine, projection).catch_up()
        expected = rows_of(engine, [projection])
        forget(engine, projection)
        one = a_runner(log, engine, projection, batch_events=3)
        two = a_runner(log, engine, projection, batch_events=5)
        while one.step() | two.step():
            pass
        assert rows_of(engine, [projection]) == expected

    def test_a_changed_version_is_rebuilt_and_the_old_program_stops(
        self, engine: Engine, projection: type[Projection]
    ) -> None:
        log = history([])
        forget(engine, projection)
        old = a_runner(log, engine, projection)
        old.catch_up()
        expected = rows_of(engine, [projection])
        newer = type("Newer", (projection,), {"version": projection.version + 1})
        a_runner(log, engine, newer).prepare()
        assert rows_of(engine, [projection]) == expected
        log = Log([e.event for e in log.entries] * 2)  # anything new
        old._log = log
        with pytest.raises(Exception, match="another program rebuilt it"):
            old.step()

    def test_a_rebuild_that_is_killed_leaves_the_live_rows_and_nothing_else(
        self, engine: Engine, projection: type[Projection]
    ) -> None:
        log = history([])
        forget(engine, projection)
        a_runner(log, engine, projection).catch_up()
        expected = rows_of(engine, [projection])
        with killed_before_commit(engine, 0), pytest.raises(Killed):
            rebuild(log, engine, [projection])
        assert rows_of(engine, [projection]) == expected
        with engine.connect() as connection:
            left = connection.exec_driver_sql(
                "SELECT relname FROM pg_class WHERE relname LIKE '%%\\_\\_next%%'"
            )
            assert left.all() == []

    def test_every_event_type_is_handled_or_named_as_ignored(
        self, engine: Engine, projection: type[Projection]
    ) -> None:
        from rows import LIVE

        newest = set(EVENT_TYPES.values()) - set(UPCASTERS)  # an old one is read as what replaced it
        assert projection(LIVE).reads == newest

    def test_an_unknown_event_stops_it_with_its_position(
        self, engine: Engine, projection: type[Projection]
    ) -> None:
        class FromTheFuture(Event, frozen=True, tag=f"test.{projection.name}.v1"):
            pass

        log = history([])
        end = log.size()
        future = FromTheFuture(
            originator_id=log.entries[0].event.originator_id, originator_version=99, at_us=1
        )
        log = Log([*(e.event for e in log.entries), future, future])
        forget(engine, projection)
        runner = a_runner(log, engine, projection, batch_events=end)
        with pytest.raises(UnknownEventError, match=f"{projection.name} does not know FromTheFuture.*{end}"):
            runner.catch_up()
        assert position_of(engine, projection.name) == end


def history(moves: list[Move]) -> Log:
    return Log(History().play([*OPENING, *moves]))


def a_runner(log: Log, engine: Engine, projection: type[Projection], **options: Any) -> Runner:
    return Runner(log, engine, projections=[projection], **options)


Killer = Callable[[Engine, int], AbstractContextManager[None]]


@contextmanager
def killed_before_statement(engine: Engine, number: int):
    left = [number]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    event.listen(engine, "before_cursor_execute", count)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", count)


@contextmanager
def killed_before_commit(engine: Engine, number: int):
    with _at_commit(engine, number, commits=False):
        yield


@contextmanager
def killed_after_commit(engine: Engine, number: int):
    with _at_commit(engine, number, commits=True):
        yield


@contextmanager
def _at_commit(engine: Engine, number: int, *, commits: bool):
    left = [number]
    commit = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            if commits:
                commit(connection)
            raise Killed
        commit(connection)

    engine.dialect.do_commit = do_commit  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine.dialect.do_commit
