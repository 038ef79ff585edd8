"""Alembic's entry: runs inside the one transaction that `ledger.store.migrate` has opened and locked."""

from alembic import context

attributes = context.config.attributes
context.configure(connection=attributes["connection"], version_table_schema=attributes["schema"])
with context.begin_transaction():
    context.run_migrations()
