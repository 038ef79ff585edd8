"""The friend's node: serves segments to viewers, keeps their receipts safe on disk, sends them to the hub.

Runs on the base install alone: no Postgres, Valkey, web framework or codec is imported from here, directly or not
(tests/node/test_plain_install.py).
"""
