// Wire formats of tickets and receipts, as in docs/protocol.md (the hub's side: ledger/ticket.py, ledger/receipt.py).
//
// Invariant: bytes produced here verify there. tests/browser checks both sides against tests/vectors/protocol.json.
// All integers big-endian. Signed message = ASCII domain line + body.

export const TICKET_BODY_BYTES = 190;
export const TICKET_BYTES = 254;
export const RECEIPT_BODY_BYTES = 141;
export const RECEIPT_BYTES = 205;
export const BITMAP_BITS = 512;

const VERSION = 1;
const TICKET_DOMAIN = new TextEncoder().encode("restream/ticket/v1\n");
const RECEIPT_DOMAIN = new TextEncoder().encode("restream/receipt/v1\n");

export class WireError extends Error {}

export function hex(bytes) {
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

export function concat(...parts) {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.byteLength, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.byteLength;
  }
  return out;
}

export async function sha256(bytes) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
}

function fromBase64Url(text) {
  if (text.length > 2 * TICKET_BYTES) throw new WireError("ticket text is too long");
  try {
    const raw = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(raw, (c) => c.charCodeAt(0));
  } catch {
    throw new WireError("ticket text is not base64url");
  }
}

function sequenceAt(view, offset) {
  const value = view.getBigUint64(offset);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new WireError("sequence is out of range");
  return Number(value);
}

/** Reads the `t` parameter of a segment URL. Throws WireError for anything but one signed ticket. */
export function parseTicket(text) {
  const bytes = fromBase64Url(text);
  if (bytes.length !== TICKET_BYTES) throw new WireError(`a signed ticket is ${TICKET_BYTES} bytes`);
  const view = new DataView(bytes.buffer);
  if (view.getUint8(0) !== VERSION) throw new WireError("unknown ticket version");
  const viewerClass = view.getUint8(1);
  if (viewerClass !== 1 && viewerClass !== 2) throw new WireError("unknown viewer class");
  const firstSequence = sequenceAt(view, 138);
  const lastSequence = sequenceAt(view, 146);
  if (lastSequence < firstSequence || lastSequence >= firstSequence + BITMAP_BITS) {
    throw new WireError(`a ticket covers 1 to ${BITMAP_BITS} segments`);
  }
  return {
    viewerClass,
    viewerKey: bytes.slice(74, 106),
    nodeKey: bytes.slice(106, 138),
    firstSequence,
    lastSequence,
    nonce: bytes.slice(174, 190),
    body: bytes.slice(0, TICKET_BODY_BYTES),
  };
}

/** What receipts name: SHA-256 over domain and body, without the signature. */
export function ticketHash(ticket) {
  return sha256(concat(TICKET_DOMAIN, ticket.body));
}

/** SHA-256(nonce + segment bytes). `prefixed` is the two already joined (see `noncePrefixed`). */
export function segmentDigest(prefixed) {
  return sha256(prefixed);
}

/** Copies at once, before a player may take the segment's buffer away. */
export function noncePrefixed(nonce, segment) {
  return concat(nonce, segment);
}

// ledger/ids.py: the id of a node is a UUID version 5 (RFC 9562 section 5.5) of its public key in this namespace.
const NAMESPACE = "5e1f0d1e7a535c0e9f43737265616d72";

/** The id by which the hub's API knows the node with this 32-byte public key. */
export function nodeId(publicKey) {
  const namespace = Uint8Array.from(NAMESPACE.match(/../g), (byte) => parseInt(byte, 16));
  const name = new TextEncoder().encode(`node:${hex(publicKey)}`);
  const id = sha1(concat(namespace, name)).slice(0, 16);
  id[6] = (id[6] & 0x0f) | 0x50;
  id[8] = (id[8] & 0x3f) | 0x80;
  return hex(id).replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

// RFC 3174. Browsers lock theirs away from pages that came over plain http, and those too say who carries the stream.
function sha1(bytes) {
  const padded = new Uint8Array((bytes.length + 72) & ~63);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 4, 8 * bytes.length);
  const left = (word, by) => (word << by) | (word >>> (32 - by));
  const hash = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0];
  const words = new Int32Array(80);
  for (let block = 0; block < padded.length; block += 64) {
    for (let t = 0; t < 16; t++) words[t] = view.getInt32(block + 4 * t);
    for (let t = 16; t < 80; t++) words[t] = left(words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16], 1);
    let [a, b, c, d, e] = hash;
    for (let t = 0; t < 80; t++) {
      const [mix, constant] = SHA1_ROUNDS[Math.floor(t / 20)];
      const next = (left(a, 5) + mix(b, c, d) + e + constant + words[t]) | 0;
      [a, b, c, d, e] = [next, a, left(b, 30), c, d];
    }
    [a, b, c, d, e].forEach((word, i) => (hash[i] = (hash[i] + word) | 0));
  }
  const out = new DataView(new ArrayBuffer(20));
  hash.forEach((word, i) => out.setInt32(4 * i, word));
  return new Uint8Array(out.buffer);
}

const SHA1_ROUNDS = [
  [(b, c, d) => (b & c) | (~b & d), 0x5a827999],
  [(b, c, d) => b ^ c ^ d, 0x6ed9eba1],
  [(b, c, d) => (b & c) | (b & d) | (c & d), 0x8f1bbcdc],
  [(b, c, d) => b ^ c ^ d, 0xca62c1d6],
];

/** The 141 bytes of a receipt's body. `digests` is a Map from sequence to the 32-byte digest of that segment. */
export async function receiptBody({ hash, counter, baseSequence, digests }) {
  const body = new Uint8Array(RECEIPT_BODY_BYTES);
  const view = new DataView(body.buffer);
  const sequences = [...digests.keys()].sort((a, b) => a - b);
  view.setUint8(0, VERSION);
  body.set(hash, 1);
  view.setUint32(33, counter);
  view.setBigUint64(37, BigInt(baseSequence));
  for (const sequence of sequences) {
    const bit = sequence - baseSequence;
    if (bit < 0 || bit >= BITMAP_BITS) throw new WireError("sequence is outside the bitmap");
    body[45 + (bit >> 3)] |= 1 << (bit & 7);
  }
  body.set(await sha256(concat(...sequences.map((s) => digests.get(s)))), 109);
  return body;
}

/** The 205 bytes that go to the node and to the hub. `key` is an Ed25519 CryptoKey that may sign. */
export async function signReceipt(body, key) {
  const signature = await crypto.subtle.sign("Ed25519", key, concat(RECEIPT_DOMAIN, body));
  return concat(body, new Uint8Array(signature));
}
