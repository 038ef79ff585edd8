"""The wire formats are frozen: tests/vectors/protocol.json pins their bytes, docs/protocol.md their layout."""

import hashlib
import json
import struct
from pathlib import Path

import protocol_vectors
import pytest
import verdict_vectors
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from ledger import batch, receipt, ticket
from ledger.batch import Batch
from ledger.receipt import SignedReceipt
from ledger.request import RequestAuthError, verify_request
from ledger.ticket import SignedTicket
from ledger.verdict import Cap, Verdict

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "tests/vectors/protocol.json").read_text()
VECTORS = json.loads(TEXT)
HUB = bytes.fromhex(VECTORS["keys"]["hub"]["public_key"])


def test_the_program_still_makes_exactly_the_published_vectors():
    assert protocol_vectors.text() == TEXT


def test_the_program_still_refuses_and_judges_as_published():
    assert verdict_vectors.text() == (ROOT / "tests/vectors/verdicts.json").read_text()


def test_the_published_verdicts_have_every_rule_and_every_refusal():
    made = json.loads((ROOT / "tests/vectors/verdicts.json").read_text())
    steps = made["evening"]["steps"]
    assert {s["verdict"] for s in steps} == set(Verdict)
    assert {s["cap"] for s in steps} == set(Cap)
    assert {r["result"] for r in made["requests"]} >= {"malformed", "out_of_time", "bad_signature"}
    for message in made["messages"]:  # each byte, and nothing that is changed is good
        assert {at for at, _, _ in message["flips"]} == set(range(len(message["hex"]) // 2))
        assert {what for _, _, what in message["flips"]} == {"malformed", "bad_signature"}


def test_keys_are_named_by_the_start_of_their_hash():
    for key in VECTORS["keys"].values():
        assert key["key_id"] == hashlib.sha256(bytes.fromhex(key["public_key"])).hexdigest()[:16]


@pytest.mark.parametrize("v", VECTORS["tickets"], ids=lambda v: v["name"])
def test_a_ticket_has_each_field_where_the_documentation_says(v):
    body = bytes.fromhex(v["body"])
    assert len(body) == 190
    assert body[0] == 1
    assert body[1] == v["viewer_class"]
    names = [("hub_key_id", 2, 8), ("ticket_id", 10, 16), ("session_id", 26, 16), ("stream_id", 42, 16)]
    names += [("rendition_id", 58, 16), ("viewer_key", 74, 32), ("node_key", 106, 32), ("nonce", 174, 16)]
    for name, at, size in names:
        assert body[at : at + size].hex() == v[name].replace("-", ""), name
    numbers = ("first_sequence", "last_sequence", "settle_by_s", "tariff_version", "byte_budget")
    assert struct.unpack(">QQQIQ", body[138:174]) == tuple(v[n] for n in numbers)
    assert hashlib.sha256(b"restream/ticket/v1\n" + body).hexdigest() == v["hash"]
    VerifyKey(HUB).verify(b"restream/ticket/v1\n" + body, bytes.fromhex(v["signature"]))
    assert SignedTicket.decode_url(v["url_text"]).ticket.hash.hex() == v["hash"]


@pytest.mark.parametrize("v", VECTORS["receipts"], ids=lambda v: v["name"])
def test_a_receipt_has_each_field_where_the_documentation_says(v):
    body = bytes.fromhex(v["body"])
    assert len(body) == 141
    version, ticket_hash, counter, base, bitmap, digest = struct.unpack(">B32sIQ64s32s", body)
    assert (version, ticket_hash.hex(), counter, base) == (
        1,
        v["ticket_hash"],
        v["counter"],
        v["base_sequence"],
    )
    claimed = [base + i for i in range(512) if bitmap[i // 8] & 1 << i % 8]
    assert claimed == v["sequences"]
    nonce = bytes.fromhex(v["nonce"])
    digests = [hashlib.sha256(nonce + bytes.fromhex(s)).digest() for s in v["segments"]]
    assert hashlib.sha256(b"".join(digests)).digest() == digest
    signer = VerifyKey(bytes.fromhex(v["signer"]))
    signer.verify(b"restream/receipt/v1\n" + body, bytes.fromhex(v["signature"]))
    with pytest.raises(BadSignatureError):  # a message of one kind is never one of another
        signer.verify(b"restream/ticket/v1\n" + body, bytes.fromhex(v["signature"]))
    assert SignedReceipt.decode(bytes.fromhex(v["encoded"])).receipt.sequences() == claimed


@pytest.mark.parametrize("v", VECTORS["batches"], ids=lambda v: v["name"])
def test_a_batch_has_each_field_where_the_documentation_says(v):
    body, receipts = bytes.fromhex(v["body"]), [bytes.fromhex(r) for r in v["receipts"]]
    assert len(body) == 83
    version, node, start, end, count, digest = struct.unpack(">B32sQQH32s", body)
    assert (node.hex(), start, end) == (v["node_key"], v["window_start_s"], v["window_end_s"])
    assert count == len(receipts)
    if version == 1:
        assert digest.hex() == v["merkle_root"]
    else:
        assert version == 2
        assert digest.hex() == v["receipts_sha256"]
        assert digest == hashlib.sha256(b"".join(receipts)).digest()
    encoded = body + bytes.fromhex(v["signature"]) + b"".join(receipts)
    assert hashlib.sha256(encoded).hexdigest() == v["encoded_sha256"]
    domain = f"restream/batch/v{version}\n".encode()
    VerifyKey(node).verify(domain + body, bytes.fromhex(v["signature"]))
    assert Batch.decode(encoded).hash.hex() == v["hash"]


@pytest.mark.parametrize("v", VECTORS["requests"], ids=lambda v: v["method"])
def test_a_signed_request_is_good_for_exactly_that_request(v):
    body = bytes.fromhex(v["body"])
    signer = verify_request(v["authorization"], v["method"], v["target"], body, now_s=v["now_s"] + 299)
    assert signer.hex() == VECTORS["keys"]["node"]["public_key"]
    for method, target, sent, now_s in (
        ("DELETE", v["target"], body, v["now_s"]),
        (v["method"], v["target"] + "?x", body, v["now_s"]),
        (v["method"], v["target"], body + b" ", v["now_s"]),
        (v["method"], v["target"], body, v["now_s"] + 301),
    ):
        with pytest.raises(RequestAuthError):
            verify_request(v["authorization"], method, target, sent, now_s=now_s)


def test_the_documentation_names_every_size_and_domain():
    text = (ROOT / "docs/protocol.md").read_text()
    for module in (ticket, receipt, batch):
        assert str(module.BODY_BYTES) in text
    for domain in (ticket.DOMAIN, receipt.DOMAIN, *batch.DOMAINS.values()):
        assert domain.decode().strip() in text
    for size in (ticket.SIGNED_BYTES, receipt.SIGNED_BYTES, batch.HEADER_BYTES, batch.MAX_RECEIPTS):
        assert str(size) in text
