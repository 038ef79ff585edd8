"""Postgres and Valkey from wheels, run as children of the hub: no system package, no system user, no open
port."""
