"""Makes tests/vectors/verdicts.json: `python tests/node/verdict_vectors.py > tests/vectors/verdicts.json`.

What every implementation must refuse, and in what words it must judge: each byte of each message changed, keys and
signatures on which Ed25519 libraries differ, and an evening of receipts with a verdict for every rule. No clock, no
randomness: the same bytes on every machine.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from ledger.batch import Batch
from ledger.credit import CreditSet
from ledger.judge import Judgement, Manifest, NodeFacts, SessionFacts, judge, parse_receipt, refused
from ledger.keys import KeyPair, verify
from ledger.receipt import Receipt, SignedReceipt, fold_digests, segment_digest, to_bitmap
from ledger.request import RequestAuthError, sign_request, verify_request
from ledger.settings import Settings
from ledger.ticket import SignedTicket, Ticket, ViewerClass, WireError
from ledger.verdict import Verdict

HUB, NODE, OTHER, VIEWER, STRANGER = (KeyPair(bytes([n]) * 32) for n in range(1, 6))
FIRST: Final = 1000  # of the broadcast
NOW_S: Final = 1_800_000_000
MEDIA: Final = {s: hashlib.sha256(b"segment %d" % s).digest() * (1 + s % 3) for s in range(FIRST, FIRST + 40)}
HOME, AWAY, FAR = (hashlib.sha256(name).digest()[:16] for name in (b"home", b"away", b"far"))
FRIEND = UUID(int=0x55555555555545558555555555555555)
SETTINGS = Settings().changed({"prefix_sessions_max": 1})
NUMBERS: Final = ("prefix_sessions_max", "same_network_forbidden", "suspended_signed_paid")
# Points of small order, and one that is written in a second way: libsodium refuses them as keys, OpenSSL does not.
EDGE_KEYS: Final = (
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0100000000000000000000000000000000000000000000000000000000000080",
)
ORDER: Final = 2**252 + 27742317777372353535851937790883648493  # of the group: RFC 8032 section 5.1


def ticket(number: int, *, node: KeyPair = NODE, viewer: KeyPair | None = VIEWER, **changed: Any) -> Ticket:
    """For session `number`; without a viewer it is for a plain player."""
    fields: dict[str, Any] = {
        "viewer_class": ViewerClass.SIGNING if viewer else ViewerClass.PLAIN,
        "hub_key_id": HUB.key_id,
        "ticket_id": UUID(int=0xAA00 + number),
        "session_id": UUID(int=0xBB00 + number),
        "stream_id": UUID(int=0xCC),
        "rendition_id": UUID(int=0xDD),
        "viewer_key": (viewer or node).public_key,
        "node_key": node.public_key,
        "first_sequence": FIRST + 2,
        "last_sequence": FIRST + 60,
        "settle_by_s": NOW_S + 1_000,
        "tariff_version": 1,
        "byte_budget": 10_000,
        "nonce": bytes(range(16)),
    }
    return Ticket(**{**fields, **changed})


def receipt(
    of: Ticket,
    sequences: Iterable[int],
    *,
    signer: KeyPair = VIEWER,
    base: int | None = None,
    counter: int = 1,
    media: dict[int, bytes] = MEDIA,
) -> SignedReceipt:
    claimed = [FIRST + s for s in sequences]
    base = of.first_sequence if base is None else base
    digest = fold_digests(segment_digest(of.nonce, media.get(s, b"never was")) for s in claimed)
    made = Receipt(
        ticket_hash=of.hash,
        counter=counter,
        base_sequence=base,
        bitmap=to_bitmap(base, claimed),
        digest=digest,
    )
    return made.sign(signer)


# --- messages, each byte changed


def opened(kind: str, data: bytes) -> str:
    """What becomes of a ticket (of the hub), a receipt (of the viewer) or a batch (of its node)."""
    try:
        if kind == "ticket":
            return "ok" if SignedTicket.decode(data).verified_by(HUB.public_key) else "bad_signature"
        if kind == "receipt":
            return "ok" if SignedReceipt.decode(data).verified_by(VIEWER.public_key) else "bad_signature"
        Batch.decode(data)
        return "ok"
    except WireError as e:
        return "bad_signature" if "not signed" in str(e) else "malformed"


def broken(kind: str, data: bytes) -> dict[str, Any]:
    """The message, and what is wrong with it after each byte was changed or cut off."""

    def changed(at: int, mask: int) -> bytes:
        return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]

    assert opened(kind, data) == "ok"
    flips = [[at, mask, opened(kind, changed(at, mask))] for at in range(len(data)) for mask in (1, 128)]
    lengths = [
        [n, opened(kind, data[:n] + bytes(max(0, n - len(data))))]
        for n in (0, 1, len(data) - 1, len(data) + 1)
    ]
    return {"kind": kind, "hex": data.hex(), "flips": flips, "lengths": lengths}


def edges() -> list[dict[str, Any]]:
    """Signatures of a receipt's body that are no good, whatever another library says."""
    body = receipt(ticket(1), [2, 3]).receipt.body()
    domain = b"restream/receipt/v1\n"
    good = VIEWER.sign(domain, body)
    zero = bytes(32)
    cases = [("an honest one", VIEWER.public_key, good)]
    cases += [
        (f"key of small order {key[:8]}", bytes.fromhex(key), bytes.fromhex(key) + zero) for key in EDGE_KEYS
    ]
    identity = bytes.fromhex(EDGE_KEYS[0])
    cases += [
        (f"key of small order {key[:8]}, R = 1", bytes.fromhex(key), identity + zero) for key in EDGE_KEYS[1:]
    ]
    s = int.from_bytes(good[32:], "little")
    cases += [
        ("S + order", VIEWER.public_key, good[:32] + (s + ORDER).to_bytes(32, "little")),
        ("R of small order", VIEWER.public_key, identity + good[32:]),
        ("all zero", VIEWER.public_key, bytes(64)),
        ("key that is no point", b"\x02" + bytes(31), good),
    ]
    return [
        {
            "name": name,
            "key": key.hex(),
            "body": body.hex(),
            "signature": signature.hex(),
            "holds": verify(key, domain, body, signature),
        }
        for name, key, signature in cases
    ]


def requests() -> list[dict[str, Any]]:
    method, target, body = "POST", "/api/nodes/me/heartbeat?x=1", b'{"port":8100}'
    good = sign_request(NODE, method, target, body, now_s=NOW_S)
    cases: list[tuple[str, str | None, str, str, bytes, int]] = [
        ("as it was sent", good, method, target, body, NOW_S),
        ("in time", good, method, target, body, NOW_S + 300),
        ("too late", good, method, target, body, NOW_S + 301),
        ("too early", good, method, target, body, NOW_S - 301),
        ("another method", good, "PUT", target, body, NOW_S),
        ("another target", good, method, target + "2", body, NOW_S),
        ("another body", good, method, target, body + b" ", NOW_S),
        ("another time", good.replace(f":{NOW_S}:", f":{NOW_S + 1}:"), method, target, body, NOW_S),
        (
            "another key",
            good.replace(NODE.public_key.hex(), OTHER.public_key.hex()),
            method,
            target,
            body,
            NOW_S,
        ),
        ("no header", None, method, target, body, NOW_S),
        ("another scheme", good.replace("Node ", "Bearer "), method, target, body, NOW_S),
        ("no hex", good.replace("Node ", "Node g"), method, target, body, NOW_S),
        ("a part missing", good.rpartition(":")[0], method, target, body, NOW_S),
        ("capitals", "Node " + good[5:].upper(), method, target, body, NOW_S),
        ("a sign", good.replace(f":{NOW_S}:", f":+{NOW_S}:"), method, target, body, NOW_S),
        ("a zero in front", good.replace(f":{NOW_S}:", f":0{NOW_S}:"), method, target, body, NOW_S),
        ("a space", good.replace(f":{NOW_S}:", f": {NOW_S}:"), method, target, body, NOW_S),
        ("a short key", good.replace("Node ", "Node ")[:5] + good[7:], method, target, body, NOW_S),
    ]
    return [
        {
            "name": name,
            "authorization": header,
            "method": m,
            "target": t,
            "body": b.hex(),
            "now_s": now_s,
            "result": _request(header, m, t, b, now_s),
        }
        for name, header, m, t, b, now_s in cases
    ]


def _request(header: str | None, method: str, target: str, body: bytes, now_s: int) -> str:
    try:
        return verify_request(header, method, target, body, now_s=now_s).hex()
    except RequestAuthError as e:
        if "clock" in str(e):
            return "out_of_time"
        return "bad_signature" if "does not match" in str(e) else "malformed"


# --- an evening of receipts


class Evening:
    """A hub that judges, step by step. Sessions are numbered; each has one network."""

    def __init__(self) -> None:
        self.credits = CreditSet()
        self.manifest = Manifest(FIRST, (len(MEDIA[s]) for s in sorted(MEDIA)))
        self.node = NodeFacts(NODE.public_key, FRIEND, frozenset((HOME, AWAY)), suspended=False)
        self.sessions: dict[int, SessionFacts] = {}
        self.tickets: dict[bytes, tuple[Ticket, SessionFacts]] = {}
        self.issued: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []

    def issue(self, made: Ticket, network: bytes = FAR, account_id: UUID | None = None) -> Ticket:
        facts = SessionFacts(network, account_id)
        self.tickets[made.hash] = (made, facts)
        self.issued.append(
            {
                "ticket": made.sign(HUB).encode().hex(),
                "network": network.hex(),
                "account_id": str(account_id) if account_id else None,
            }
        )
        return made

    def judge(self, why: str, data: bytes, *, now_s: int = NOW_S, lost: int | None = None) -> None:
        """`lost`: a segment whose bytes the hub no longer has."""
        judgement, session = self._judgement(data, now_s, lost)
        if judgement.units and session is not None:
            signed = parse_receipt(data)
            assert signed is not None
            of, facts = self.tickets[signed.receipt.ticket_hash]
            self.credits.credit(of.session_id, facts.network, judgement.units)
        verdict = judgement.judged
        self.steps.append(
            {
                "why": why,
                "receipt": data.hex(),
                "now_s": now_s,
                "suspended": self.node.suspended,
                "lost": lost,
                "verdict": verdict.verdict,
                "cap": verdict.cap,
                "units": verdict.units,
                "credited_bytes": verdict.credited_bytes,
            }
        )

    def _judgement(self, data: bytes, now_s: int, lost: int | None) -> tuple[Judgement, SessionFacts | None]:
        signed = parse_receipt(data)
        if signed is None:
            return refused(Verdict.MALFORMED), None
        known = self.tickets.get(signed.receipt.ticket_hash)
        if known is None:
            return refused(Verdict.UNKNOWN_TICKET), None

        def digest_of(nonce: bytes, sequence: int) -> bytes | None:
            return None if sequence == lost else segment_digest(nonce, MEDIA[sequence])

        return judge(
            signed,
            known[0],
            node=self.node,
            session=known[1],
            manifest=self.manifest,
            credits=self.credits,
            settings=SETTINGS,
            digest_of=digest_of,
            now_s=now_s,
        ), known[1]


def evening() -> Evening:
    e = Evening()
    issue = e.issue
    one = issue(ticket(1))

    def say(
        why: str,
        of: Ticket,
        sequences: Iterable[int],
        *,
        now_s: int = NOW_S,
        lost: int | None = None,
        **how: Any,
    ) -> None:
        e.judge(why, receipt(of, sequences, **how).encode(), now_s=now_s, lost=lost)

    say("three segments", one, [2, 3, 4])
    say("the same again", one, [2, 3, 4])
    say("cumulative: two more", one, [2, 3, 4, 5, 9], counter=2)
    say("in the other order: nothing new", one, [2, 3], counter=1)
    say("nothing at all", one, [])
    say("another base, the same segments and one more", one, [5, 6, 9], base=FIRST, counter=3)
    say("before the ticket's first", one, [1, 2], base=FIRST)
    say("after its last", one, [61])
    say("never published", one, [39, 40])
    say("before the broadcast's first", one, [-3], base=FIRST - 3)
    say("the last that is published", one, [39])
    say("not the viewer's signature", one, [10], signer=STRANGER)
    say("the node signs for the viewer", one, [10], signer=NODE)
    say("other bytes", one, [10], media={**MEDIA, FIRST + 10: b"noise"})
    say("another digest order", one, [10, 11], media={**MEDIA, FIRST + 10: MEDIA[FIRST + 11]})
    say("the hub lost a segment: taken on its signature", one, [12], media={}, lost=FIRST + 12)
    say("the last second", one, [13], now_s=one.settle_by_s)
    say("a second too late", one, [14], now_s=one.settle_by_s + 1)
    say("days before it was issued: clocks decide nothing", one, [15], now_s=0)
    e.judge("no receipt", bytes(205))
    e.judge("of a version to come", b"\x02" + receipt(one, [16]).encode()[1:])
    e.judge("too short", receipt(one, [16]).encode()[:-1])
    e.judge(
        "base out of range",
        replace(receipt(one, []).receipt, base_sequence=2**63 - 512).sign(VIEWER).encode(),
    )
    say("a ticket nobody issued", ticket(2), [2])
    say("a ticket for another node", issue(ticket(3, node=OTHER)), [2])
    second = issue(ticket(4), network=FAR)
    say("a second session of one network, segments that are paid", second, [2, 3])
    say("of which one is not", second, [2, 20])
    say("at the node's home", issue(ticket(5), network=HOME), [21])
    say("at the other network of the node", issue(ticket(6), network=AWAY), [21])
    say("no network", issue(ticket(7), network=b""), [21])
    say("the friend's own account", issue(ticket(8), network=b"", account_id=FRIEND), [21])
    say("somebody else's", issue(ticket(9), network=b"", account_id=UUID(int=1)), [21])
    budget = len(MEDIA[FIRST + 2]) + len(MEDIA[FIRST + 3])
    small = issue(ticket(10, byte_budget=budget), network=b"")
    say("as many bytes as the ticket allows", small, [2, 3])
    say("more, in parts", small, [4])
    plain = issue(ticket(11, viewer=None), network=b"")
    say("a plain player: the node signs", plain, [2, 3], signer=NODE)
    again = issue(ticket(1, ticket_id=UUID(int=0xEE), first_sequence=FIRST + 5, last_sequence=FIRST + 30))
    say("a second ticket of the session: what is credited stays so", again, [5, 6, 22])
    e.node = replace(e.node, suspended=True)
    say("suspended: what a viewer signed is paid", one, [23])
    say("suspended: what the node claims is not", plain, [23], signer=NODE)
    say("suspended: late comes first", plain, [23], signer=NODE, now_s=NOW_S + 2_000)
    return e


def vectors() -> dict[str, Any]:
    e = evening()
    receipts = [receipt(ticket(1), [2, 3]).encode(), receipt(ticket(1), [2, 3, 4], counter=2).encode()]
    return {
        "about": "What must be refused and how it is judged, docs/protocol.md. Made by tests/node/verdict_vectors.py.",
        "keys": {
            "hub": HUB.public_key.hex(),
            "node": NODE.public_key.hex(),
            "viewer": VIEWER.public_key.hex(),
        },
        "messages": [
            broken("ticket", ticket(1).sign(HUB).encode()),
            broken("receipt", receipts[0]),
            *[broken("batch", Batch.sign(NODE, 1, 2, receipts, version=v).encode()) for v in (1, 2)],
        ],
        "signatures": edges(),
        "requests": requests(),
        "evening": {
            "settings": {name: getattr(SETTINGS, name) for name in NUMBERS},
            "node": {
                "public_key": NODE.public_key.hex(),
                "friend_id": str(FRIEND),
                "networks": sorted(n.hex() for n in e.node.networks),
            },
            "first_sequence": FIRST,
            "segments": [MEDIA[s].hex() for s in sorted(MEDIA)],
            "tickets": e.issued,
            "steps": e.steps,
        },
    }


def text() -> str:
    """One line for each entry of a list: short, and still to be read."""

    def lines(value: Any, depth: int) -> str:
        pad, item = " " * depth, " " * (depth + 1)
        if depth < 3 and isinstance(value, dict):
            inner = (f"{item}{json.dumps(k)}: {lines(v, depth + 1)}" for k, v in value.items())
            return "{\n" + ",\n".join(inner) + f"\n{pad}}}"
        if depth < 3 and isinstance(value, list):
            return "[\n" + ",\n".join(item + lines(v, 3) for v in value) + f"\n{pad}]"
        return json.dumps(value, ensure_ascii=True)

    return lines(vectors(), 0) + "\n"


if __name__ == "__main__":
    print(text(), end="")
