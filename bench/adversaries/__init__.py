"""The adversary lab: what each kind of cheat earns, before the caps and after them (`python -m bench.adversaries`).

Real ledger services on a real Postgres, real keys, tickets, receipts and settlements; no media, a segment is 32 bytes
that the log says are a megabyte. Invariant: the same seed gives the same table.
"""
