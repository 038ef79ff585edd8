"""The event sourcing library's infrastructure for one crew: our datastore, recorder and mapper.

Invariant: nothing in the process's environment can change how events are stored.
"""

from typing import Any
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.persistence import (
    AggregateRecorder,
    InfrastructureFactory,
    Mapper,
    NotSupportedError,
    ProcessRecorder,
)
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.utils import Environment

from ledger.store.database import Datastore
from ledger.store.mapper import EventMapper
from ledger.store.recorder import DenseRecorder


class StoreFactory(InfrastructureFactory[PostgresTrackingRecorder]):
    def __init__(self, datastore: Datastore) -> None:
        super().__init__(Environment("Ledger", {}))
        self.datastore = datastore

    def application_recorder(self) -> DenseRecorder:
        return DenseRecorder(self.datastore)

    def tracking_recorder(self, tracking_recorder_class: Any = None) -> PostgresTrackingRecorder:
        """Tracking for the library's projections, in the same schema; makes its table."""
        recorder: PostgresTrackingRecorder = (tracking_recorder_class or PostgresTrackingRecorder)(
            self.datastore
        )
        recorder.create_table()
        return recorder

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        raise NotSupportedError(
            f"no recorder for {purpose}: aggregates are folds of the log, without snapshots"
        )

    def process_recorder(self) -> ProcessRecorder:
        raise NotSupportedError("read models do not write to the log")

    def close(self) -> None:
        self.datastore.close()


class Store(Application[UUID]):
    """The library's application, wired to this store."""

    recorder: DenseRecorder

    def __init__(self, datastore: Datastore) -> None:
        self._store_factory = StoreFactory(datastore)
        super().__init__()

    def construct_env(self, name: str, env: Any = None) -> Environment:  # noqa: ARG002
        return Environment(name, {})

    def construct_factory(self, env: Environment) -> InfrastructureFactory[Any]:  # noqa: ARG002
        return self._store_factory

    def construct_mapper(self) -> Mapper[UUID]:
        return EventMapper()
