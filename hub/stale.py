"""Streams that were registered and never used are put aside. Invariant: a function of the log and of `at_us`."""

import structlog

from ledger.application import Ledger
from ledger.services import crew
from ledger.services.streams import mark_stale
from projections.queries import Queries

log = structlog.get_logger("hub.stale")


def mark_stale_streams(ledger: Ledger, reads: Queries, *, at_us: int) -> list[str]:
    """Mark what was never live for `stale_after_s`; their names. Raises Unavailable, ReadModelUnavailable, Conflict."""
    unused_us = crew.settings(ledger).stale_after_s * 1_000_000
    if not unused_us:
        return []
    marked = []
    for view in reads.streams():
        if view.state != "READY" or at_us - view.registered_us < unused_us:
            continue
        if mark_stale(ledger, view.stream_id, unused_us=unused_us, at_us=at_us):
            log.info("a stream was never used: it is stale", stream=view.slug)
            marked.append(view.slug)
    return marked
