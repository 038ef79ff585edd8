"""What has to be true of the database before the hub serves: schema at head, first run complete.

A process of its own (`python -m hub.setup`), so that the supervisor stays small and single-threaded. Prints the
FirstRun as one JSON object on stdout, for the supervisor alone: it may hold secrets.
"""

import dataclasses
import json
import sys

from api.directory import Directory
from hub.bootstrap import FIRST_STREAM, FirstRun, first_run
from hub.logs import configure_logging
from hub.settings import Settings, load_settings
from ledger.application import Ledger
from ledger.services.streams import load_stream
from ledger.store.database import connect_pool, create_sql_engine
from ledger.store.migrate import migrate
from projections.runner import Runner


def set_up(settings: Settings) -> FirstRun:
    """Migrate and complete the first run, with the read models that the first page asks for. Idempotent."""
    database_url = settings.resolved_database_url()
    migrate(database_url)
    ledger = Ledger(database_url)
    try:
        if load_stream(ledger, FIRST_STREAM) is None:
            # At a later start the worker sees to them, without holding it up.
            engine = create_sql_engine(database_url)
            Runner(ledger, engine).prepare()
            engine.dispose()
        with connect_pool(database_url) as pool:
            # The last step: nothing may fail between the making of secrets and telling them.
            return first_run(settings, ledger, Directory(pool))
    finally:
        ledger.close()


def main() -> None:
    settings = load_settings()
    configure_logging(json=settings.log_json, level=settings.log_level)
    json.dump(dataclasses.asdict(set_up(settings)), sys.stdout)


if __name__ == "__main__":
    main()
