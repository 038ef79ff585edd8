"""The pages' wire formats against the vectors that every implementation is tested with."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ledger.ids import node_id

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors" / "protocol.json"

SCRIPT = """
import { webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";
globalThis.crypto ??= webcrypto; // Node 18, as Debian 12 has it
const p = await import(process.argv[2]);
const vectors = JSON.parse(readFileSync(process.argv[3], "utf-8"));
const bytes = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (b) => parseInt(b, 16));
const out = { tickets: [], receipts: [], nodeId: await p.nodeId(bytes(vectors.keys.node.public_key)) };
for (const v of vectors.tickets) {
  const ticket = p.parseTicket(v.url_text);
  out.tickets.push({
    viewer_class: ticket.viewerClass,
    viewer_key: p.hex(ticket.viewerKey),
    node_key: p.hex(ticket.nodeKey),
    first_sequence: ticket.firstSequence,
    last_sequence: ticket.lastSequence,
    nonce: p.hex(ticket.nonce),
    hash: p.hex(await p.ticketHash(ticket)),
  });
}
for (const v of vectors.receipts) {
  const digests = new Map();
  for (const [i, sequence] of v.sequences.entries()) {
    const segment = bytes(v.segments[i]);
    digests.set(sequence, await p.segmentDigest(p.noncePrefixed(bytes(v.nonce), segment)));
  }
  const signer = Object.values(vectors.keys).find((k) => k.public_key === v.signer);
  const pkcs8 = p.concat(bytes("302e020100300506032b657004220420"), bytes(signer.seed)); // RFC 8410 section 7
  const key = await crypto.subtle.importKey("pkcs8", pkcs8, "Ed25519", false, ["sign"]);
  const body = await p.receiptBody({
    hash: bytes(v.ticket_hash), counter: v.counter, baseSequence: v.base_sequence, digests,
  });
  out.receipts.push({ body: p.hex(body), encoded: p.hex(await p.signReceipt(body, key)) });
}
for (const bad of ["", "A", "!".repeat(339), vectors.tickets[0].url_text + "AAAA"]) {
  try { p.parseTicket(bad); out.accepted = bad; } catch (error) {
    if (!(error instanceof p.WireError)) throw error;
  }
}
console.log(JSON.stringify(out));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, as building the pages does")
def test_tickets_and_receipts_of_the_page_are_those_of_the_hub(tmp_path: Path) -> None:
    script = tmp_path / "vectors.mjs"
    script.write_text(SCRIPT)
    module = (ROOT / "api" / "web" / "static" / "protocol.js").as_uri()
    run = subprocess.run(
        ["node", str(script), module, str(VECTORS)], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    out = json.loads(run.stdout)
    vectors = json.loads(VECTORS.read_text())
    assert "accepted" not in out
    assert out["nodeId"] == str(node_id(bytes.fromhex(vectors["keys"]["node"]["public_key"])))
    for mine, theirs in zip(out["tickets"], vectors["tickets"], strict=True):
        assert mine == {name: theirs[name] for name in mine}
    for mine, theirs in zip(out["receipts"], vectors["receipts"], strict=True):
        assert mine == {name: theirs[name] for name in mine}
