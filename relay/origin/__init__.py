"""Origin: what ingest cuts, kept, listed and served: HLS and HTTP-FLV. One event loop, no threads; the ledger is behind
`relay.ports`. `relay.service` joins it with ingest.
"""
