"""Makes tests/vectors/protocol.json: `python tests/node/protocol_vectors.py > tests/vectors/protocol.json`.

The same bytes on every machine and every run: keys from fixed seeds, Ed25519 by RFC 8032 (deterministic), no clock.
"""

import hashlib
import json
from typing import Any
from uuid import UUID

from ledger.batch import Batch
from ledger.keys import KeyPair
from ledger.receipt import Receipt, fold_digests, segment_digest, to_bitmap
from ledger.request import sign_request
from ledger.ticket import Ticket, ViewerClass

HUB, NODE, VIEWER = (KeyPair(bytes([n]) * 32) for n in (1, 2, 3))
SEGMENTS = {1000: b"first segment", 1001: b"second segment", 1003: bytes(range(256))}


def _ticket(viewer_class: ViewerClass) -> Ticket:
    return Ticket(
        viewer_class=viewer_class,
        hub_key_id=HUB.key_id,
        ticket_id=UUID(int=0x11111111111141118111111111111111),
        session_id=UUID(int=0x22222222222242228222222222222222),
        stream_id=UUID(int=0x33333333333353338333333333333333),
        rendition_id=UUID(int=0x44444444444444448444444444444444),
        viewer_key=VIEWER.public_key if viewer_class is ViewerClass.SIGNING else NODE.public_key,
        node_key=NODE.public_key,
        first_sequence=1000,
        last_sequence=1299,
        settle_by_s=1_800_172_800,
        tariff_version=7,
        byte_budget=900_000_000,
        nonce=bytes(range(16)),
    )


def _ticket_vector(name: str, ticket: Ticket) -> dict[str, Any]:
    signed = ticket.sign(HUB)
    return {
        "name": name,
        "viewer_class": int(ticket.viewer_class),
        "hub_key_id": ticket.hub_key_id.hex(),
        "ticket_id": str(ticket.ticket_id),
        "session_id": str(ticket.session_id),
        "stream_id": str(ticket.stream_id),
        "rendition_id": str(ticket.rendition_id),
        "viewer_key": ticket.viewer_key.hex(),
        "node_key": ticket.node_key.hex(),
        "first_sequence": ticket.first_sequence,
        "last_sequence": ticket.last_sequence,
        "settle_by_s": ticket.settle_by_s,
        "tariff_version": ticket.tariff_version,
        "byte_budget": ticket.byte_budget,
        "nonce": ticket.nonce.hex(),
        "body": ticket.body().hex(),
        "hash": ticket.hash.hex(),
        "signature": signed.signature.hex(),
        "url_text": signed.encode_url(),
    }


def _receipt_vector(name: str, ticket: Ticket, signer: KeyPair, sequences: list[int]) -> dict[str, Any]:
    digests = [segment_digest(ticket.nonce, SEGMENTS[s]) for s in sequences]
    receipt = Receipt(
        ticket_hash=ticket.hash,
        counter=len(sequences),
        base_sequence=ticket.first_sequence,
        bitmap=to_bitmap(ticket.first_sequence, sequences),
        digest=fold_digests(digests),
    )
    signed = receipt.sign(signer)
    return {
        "name": name,
        "ticket_hash": ticket.hash.hex(),
        "counter": receipt.counter,
        "base_sequence": receipt.base_sequence,
        "sequences": sequences,
        "nonce": ticket.nonce.hex(),
        "segments": [SEGMENTS[s].hex() for s in sequences],
        "segment_digests": [d.hex() for d in digests],
        "bitmap": receipt.bitmap.hex(),
        "digest": receipt.digest.hex(),
        "signer": signer.public_key.hex(),
        "body": receipt.body().hex(),
        "signature": signed.signature.hex(),
        "encoded": signed.encode().hex(),
    }


def _batch_vector(name: str, receipts: list[bytes], version: int) -> dict[str, Any]:
    batch = Batch.sign(NODE, 1_800_000_000, 1_800_000_005, receipts, version=version)
    return {
        "name": name,
        "node_key": NODE.public_key.hex(),
        "window_start_s": batch.window_start_s,
        "window_end_s": batch.window_end_s,
        "receipts": [r.hex() for r in receipts],
        "merkle_root" if version == 1 else "receipts_sha256": batch.body()[-32:].hex(),
        "body": batch.body().hex(),
        "hash": batch.hash.hex(),
        "signature": batch.signature.hex(),
        "encoded_sha256": hashlib.sha256(batch.encode()).hexdigest(),
    }


def _request_vector(method: str, target: str, body: bytes) -> dict[str, Any]:
    return {
        "method": method,
        "target": target,
        "body": body.hex(),
        "now_s": 1_800_000_000,
        "authorization": sign_request(NODE, method, target, body, now_s=1_800_000_000),
    }


def vectors() -> dict[str, Any]:
    signing, plain = _ticket(ViewerClass.SIGNING), _ticket(ViewerClass.PLAIN)
    receipts = [
        _receipt_vector("one segment", signing, VIEWER, [1000]),
        _receipt_vector("three segments, one missing", signing, VIEWER, [1000, 1001, 1003]),
        _receipt_vector("a node's claim for a plain player", plain, NODE, [1000, 1001]),
    ]
    encoded = [bytes.fromhex(r["encoded"]) for r in receipts]
    return {
        "about": "Wire formats of docs/protocol.md. Made by tests/node/protocol_vectors.py; hex unless said otherwise.",
        "keys": {
            name: {"seed": k.seed.hex(), "public_key": k.public_key.hex(), "key_id": k.key_id.hex()}
            for name, k in (("hub", HUB), ("node", NODE), ("viewer", VIEWER))
        },
        "tickets": [_ticket_vector("signing viewer", signing), _ticket_vector("plain player", plain)],
        "receipts": receipts,
        "batches": [
            _batch_vector("empty, version 1", [], 1),
            _batch_vector("three receipts, version 1", encoded, 1),
            _batch_vector("empty", [], 2),
            _batch_vector("three receipts", encoded, 2),
        ],
        "requests": [
            _request_vector("GET", "/segments/44444444-4444-4444-8444-444444444444/1000.ts", b""),
            _request_vector("POST", "/api/nodes/me/heartbeat", b'{"url":null,"port":8100}'),
        ],
    }


def text() -> str:
    return json.dumps(vectors(), indent=1) + "\n"


if __name__ == "__main__":
    print(text(), end="")
