"""The event sourcing library's own recorder test cases, unchanged, on this store."""

import sys
from types import ModuleType

import pytest
from eventsourcing.postgres import PostgresTrackingRecorder

from ledger.store.database import Datastore
from ledger.store.factory import StoreFactory
from ledger.store.recorder import DenseRecorder

# The module of the test cases imports the library's AES cipher for cases that are not ours, and that needs a package
# which nothing of ours does.
_cipher = ModuleType("eventsourcing.cipher")
_cipher.AESCipher = None  # type: ignore[attr-defined]
sys.modules.setdefault("eventsourcing.cipher", _cipher)

from eventsourcing.tests.persistence import (  # noqa: E402
    ApplicationRecorderTestCase,
    TrackingRecorderTestCase,
)


class TestDenseRecorder(ApplicationRecorderTestCase[DenseRecorder]):
    @pytest.fixture(autouse=True)
    def _database(self, database_url: str) -> None:
        self.factory = StoreFactory(Datastore(database_url))

    def create_recorder(self) -> DenseRecorder:
        return self.factory.application_recorder()

    def tearDown(self) -> None:
        self.factory.close()

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestTrackingRecorder(TrackingRecorderTestCase):
    @pytest.fixture(autouse=True)
    def _database(self, database_url: str) -> None:
        self.factory = StoreFactory(Datastore(database_url))

    def create_recorder(self) -> PostgresTrackingRecorder:
        return self.factory.tracking_recorder()

    def tearDown(self) -> None:
        self.factory.close()


del ApplicationRecorderTestCase, TrackingRecorderTestCase  # abstract: not to be collected here
