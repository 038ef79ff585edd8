"""Batches: the receipts of the log against what their nodes signed for.

Invariant: a batch is complete when exactly the receipts that its node signed for have had their verdict; until then
they are kept.
"""

import hashlib
import struct
from collections.abc import Callable
from typing import Final
from uuid import UUID

import msgspec

from ledger.audit.crew import Crew, require
from ledger.audit.facts import struct_table
from ledger.audit.report import AuditFailure, Counts
from ledger.audit.singles import split
from ledger.audit.store import Store
from ledger.batch import BODY_BYTES, DOMAINS, HEADER_BYTES
from ledger.checks import Check, Contents, Signed
from ledger.events import ReceiptsRefused, SegmentsServed
from ledger.served import Delivery

# ledger.batch: version, node key, window, count, digest of the receipts
_HEADER: Final = struct.Struct(">B32sQQH32s")
_ASCENDING: Final = bytes(range(256))


class _Batch(msgspec.Struct, array_like=True):
    """The receipts of a batch as they are met in the log, until all are there."""

    position: int
    signed: bytes  # SHA-256 of the signature that was verified
    receipts: dict[int, bytes] = {}


class Batches:
    def __init__(
        self, crew: Crew, store: Store, counts: Counts, sign: Callable[[int, str, Check], None], verify: bool
    ) -> None:
        """`sign` takes what is to be verified; nothing is when not to `verify`."""
        self._crew = crew
        self._counts = counts
        self._sign = sign
        self._verify = verify
        self._batches = struct_table(store, b"B", _Batch, 256)
        # Of batches that are all there: their bodies' hashes, and those of their signatures.
        self._complete = store.table(b"k", bytes, bytes, 65_536)

    def finish(self) -> None:
        """Every receipt that a node signed for in a batch has its verdict."""
        first = min((batch.position for _, batch in self._batches.items()), default=None)
        if first is not None:
            raise AuditFailure("receipts of this batch have no verdict", position=first)

    def collect(self, position: int, event: SegmentsServed | Delivery | ReceiptsRefused, nid: UUID) -> None:
        """Hold the event's receipts against the header of the batch they came in.

        A batch may stand in several events, one for each broadcast; together they are what the node signed.
        """
        header, indices = event.batch_header, event.indices
        self._counts.receipts += len(indices)
        node = self._crew.node(nid)
        if not header:
            require(tuple(indices) == (0,), "a receipt outside a batch comes alone")
            return
        require(len(header) == HEADER_BYTES, "a batch header has another length")
        whole = indices == _ASCENDING[: len(indices)]
        if not whole:
            require(list(indices) == sorted(set(indices)), "the batch's indices are not ascending")
        body, signature = header[:BODY_BYTES], header[BODY_BYTES:]
        version, node_key, _, _, count, digest = _HEADER.unpack(body)
        if version not in DOMAINS:
            raise AuditFailure(f"a batch of version {version}")
        require(node_key == node.now.public_key, "the batch is another node's")
        name, signed = hashlib.sha256(body).digest(), hashlib.sha256(signature).digest()
        complete, batch = self._complete.get(name), self._batches.get(name)
        if self._verify and signed != (batch.signed if batch is not None else complete):
            self._sign(position, "the batch", Signed(node_key, DOMAINS[version], body, signature))
        if (
            complete is not None
        ):  # sent again after the hub had forgotten it: judged again, receipt by receipt
            require(all(index < count for index in indices), "the batch has no such receipt to judge")
            if whole and len(indices) == count and self._verify:
                self._sign(position, "the batch", Contents(version, digest, event.receipts))
            return
        known = batch.receipts if batch is not None else {}
        if not whole or known or len(indices) > count:
            for index in indices:
                require(index < count and index not in known, "the batch has no such receipt to judge")
        at_once = whole and len(indices) == count
        if not at_once:
            known |= dict(zip(indices, split(event.receipts), strict=True))
        done = at_once or len(known) == count
        if done and self._verify:
            receipts = event.receipts if at_once else b"".join([data for _, data in sorted(known.items())])
            self._sign(position, "the batch", Contents(version, digest, receipts))
        if batch is None:
            self._counts.batches += 1
        if done:
            self._complete.put(name, signed)
            if batch is not None:
                self._batches.remove(name)
        else:
            self._batches.put(name, batch or _Batch(position, signed, known))
