// A second verifier of docs/protocol.md, written for the page and independent of the hub's program: signatures, and the
// verdict on a receipt by the hub's rules. It needs WebCrypto and nothing else, and runs in browsers and in node.
//
// Invariant: it agrees with the hub on every case of tests/vectors/*.json (tests/browser/test_verifier_js.py). Nothing
// here decides about money: it lets somebody who does not trust the hub's program look for themselves.

import { BITMAP_BITS, concat, hex, RECEIPT_BODY_BYTES, RECEIPT_BYTES, sha256, TICKET_BODY_BYTES, TICKET_BYTES } from "./protocol.js";

export const BATCH_BODY_BYTES = 83;
export const BATCH_MAX_RECEIPTS = 200;
export const MAX_SKEW_S = 300;
const BATCH_HEADER_BYTES = BATCH_BODY_BYTES + 64;
const MAX_BASE_SEQUENCE = 2n ** 63n - 1n - 512n;
const domain = (name) => new TextEncoder().encode(`restream/${name}\n`);
const DOMAIN = Object.fromEntries(["ticket", "receipt", "request"].map((kind) => [kind, domain(`${kind}/v1`)]));
const BATCH_DOMAINS = [undefined, domain("batch/v1"), domain("batch/v2")]; // by version

/** What was given cannot be a message of a known version; `position` is the byte at which that is seen. */
export class Malformed extends Error {
  constructor(reason, position) {
    super(`${reason} (byte ${position})`);
    this.reason = reason;
    this.position = position;
  }
}

export function fromHex(text) {
  if (!/^([0-9a-f]{2})*$/.test(text)) throw new Malformed("not hexadecimal", 0);
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

// --- Ed25519

const P = 2n ** 255n - 19n; // RFC 8032 section 5.1
const ORDER = 2n ** 252n + 27742317777372353535851937790883648493n;
// The y of the eight points of small order; libraries differ on them, so they are refused before WebCrypto is asked.
const SMALL_ORDER_Y = new Set([
  0n,
  1n,
  P - 1n,
  0x05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826n,
  0x7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd84d3d706a17c7n,
]);

function littleEndian(bytes) {
  return bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
}

function isPlainPoint(bytes) {
  const y = littleEndian(bytes) & (2n ** 255n - 1n);
  return y < P && !SMALL_ORDER_Y.has(y);
}

/** Whether `signature` is `publicKey`'s over domain and body. Never throws for bad input. */
export async function verify(publicKey, domain, body, signature) {
  if (publicKey.length !== 32 || signature.length !== 64) return false;
  if (!isPlainPoint(publicKey) || !isPlainPoint(signature.slice(0, 32))) return false;
  if (littleEndian(signature.slice(32)) >= ORDER) return false;
  try {
    const key = await crypto.subtle.importKey("raw", publicKey, "Ed25519", false, ["verify"]);
    return await crypto.subtle.verify("Ed25519", key, signature, concat(domain, body));
  } catch {
    return false;
  }
}

// --- messages

function view(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function check(holds, reason, position) {
  if (!holds) throw new Malformed(reason, position);
}

/** The fields of a signed ticket. Throws Malformed. */
export function decodeTicket(bytes) {
  check(bytes.length === TICKET_BYTES, `a signed ticket is ${TICKET_BYTES} bytes`, Math.min(bytes.length, TICKET_BYTES));
  const v = view(bytes);
  check(v.getUint8(0) === 1, "unknown ticket version", 0);
  check(v.getUint8(1) === 1 || v.getUint8(1) === 2, "unknown viewer class", 1);
  const first = v.getBigUint64(138);
  const last = v.getBigUint64(146);
  check(first <= last && last < first + BigInt(BITMAP_BITS), `a ticket covers 1 to ${BITMAP_BITS} segments`, 146);
  return {
    viewerClass: v.getUint8(1),
    hubKeyId: bytes.slice(2, 10),
    ticketId: bytes.slice(10, 26),
    sessionId: bytes.slice(26, 42),
    streamId: bytes.slice(42, 58),
    renditionId: bytes.slice(58, 74),
    viewerKey: bytes.slice(74, 106),
    nodeKey: bytes.slice(106, 138),
    first,
    last,
    settleByS: v.getBigUint64(154),
    tariffVersion: v.getUint32(162),
    byteBudget: v.getBigUint64(166),
    nonce: bytes.slice(174, 190),
    body: bytes.slice(0, TICKET_BODY_BYTES),
    signature: bytes.slice(TICKET_BODY_BYTES),
  };
}

export function decodeReceipt(bytes) {
  check(bytes.length === RECEIPT_BYTES, `a signed receipt is ${RECEIPT_BYTES} bytes`, Math.min(bytes.length, RECEIPT_BYTES));
  const v = view(bytes);
  check(v.getUint8(0) === 1, "unknown receipt version", 0);
  check(v.getBigUint64(37) <= MAX_BASE_SEQUENCE, "base sequence is out of range", 37);
  return {
    ticketHash: bytes.slice(1, 33),
    counter: v.getUint32(33),
    base: v.getBigUint64(37),
    bits: littleEndian(bytes.slice(45, 109)),
    digest: bytes.slice(109, 141),
    body: bytes.slice(0, RECEIPT_BODY_BYTES),
    signature: bytes.slice(RECEIPT_BODY_BYTES),
  };
}

/** Throws Malformed unless lengths, version and hash of the receipts hold; the signature is looked at by `verifyBatch`. */
export async function decodeBatch(bytes) {
  check(bytes.length >= BATCH_HEADER_BYTES, `a batch is at least ${BATCH_HEADER_BYTES} bytes`, bytes.length);
  const v = view(bytes);
  const version = v.getUint8(0);
  check(version === 1 || version === 2, "unknown batch version", 0);
  const count = v.getUint16(49);
  check(count <= BATCH_MAX_RECEIPTS, `a batch holds at most ${BATCH_MAX_RECEIPTS} receipts`, 49);
  check(bytes.length === BATCH_HEADER_BYTES + count * RECEIPT_BYTES, `this is not a batch of ${count} receipts`, 49);
  const receipts = [];
  for (let at = BATCH_HEADER_BYTES; at < bytes.length; at += RECEIPT_BYTES) receipts.push(bytes.slice(at, at + RECEIPT_BYTES));
  const digest = await (version === 1 ? merkleRoot(receipts) : sha256(bytes.slice(BATCH_HEADER_BYTES)));
  check(hex(digest) === hex(bytes.slice(51, 83)), "the body names other receipts", 51);
  return {
    domain: BATCH_DOMAINS[version],
    nodeKey: bytes.slice(1, 33),
    receipts,
    body: bytes.slice(0, BATCH_BODY_BYTES),
    signature: bytes.slice(BATCH_BODY_BYTES, BATCH_HEADER_BYTES),
  };
}

/** RFC 6962 section 2.1: what the first version of a batch says of its receipts. */
async function merkleRoot(leaves) {
  if (leaves.length === 0) return sha256(new Uint8Array());
  if (leaves.length === 1) return sha256(concat(Uint8Array.of(0), leaves[0]));
  let split = 1;
  while (split * 2 < leaves.length) split *= 2;
  const [left, right] = await Promise.all([merkleRoot(leaves.slice(0, split)), merkleRoot(leaves.slice(split))]);
  return sha256(concat(Uint8Array.of(1), left, right));
}

/** "ok", "malformed" or "bad_signature". */
async function opened(decode, key, domain) {
  try {
    const message = await decode();
    const signed = message.domain ?? domain;
    return (await verify(key(message), signed, message.body, message.signature)) ? "ok" : "bad_signature";
  } catch (error) {
    if (error instanceof Malformed) return "malformed";
    throw error;
  }
}

export const openTicket = (bytes, hubKey) => opened(() => decodeTicket(bytes), () => hubKey, DOMAIN.ticket);
export const openReceipt = (bytes, viewerKey) => opened(() => decodeReceipt(bytes), () => viewerKey, DOMAIN.receipt);
export const openBatch = (bytes) => opened(() => decodeBatch(bytes), (batch) => batch.nodeKey);

/** The public key that signed the request, in hex, or "malformed", "out_of_time", "bad_signature". */
export async function openRequest(authorization, method, target, body, nowS) {
  const match = /^Node ([0-9a-f]{64}):(0|[1-9][0-9]{0,11}):([0-9a-f]{128})$/.exec(authorization ?? "");
  if (!match) return "malformed";
  const [, key, at, signature] = match;
  if (Math.abs(nowS - Number(at)) > MAX_SKEW_S) return "out_of_time";
  const text = `${method.toUpperCase()} ${target}\n${at}\n${hex(await sha256(body))}\n`;
  const message = new TextEncoder().encode(text);
  const holds = await verify(fromHex(key), DOMAIN.request, message, fromHex(signature));
  return holds ? key : "bad_signature";
}

export const ticketHash = async (body) => hex(await sha256(concat(DOMAIN.ticket, body)));

// --- verdicts

const countBits = (bits) => bits.toString(2).replaceAll("0", "").length;
const REFUSED = { cap: "", units: 0, creditedBytes: 0 };

/**
 * The receipts of one broadcast and one node, judged one after the other.
 *
 * `settings`: the crew's numbers, under their names in the log. `node`: `{publicKey, friendId, networks, suspended}`;
 * `networks` is a Set of hex. `firstSequence` and `segments` (Uint8Arrays) are what was published. All keys and hashes
 * that name something are hex.
 */
export class Judge {
  #tickets = new Map(); // hash -> {ticket, network, accountId}
  #credited = new Map(); // session -> bits, bit 0 is the broadcast's first segment
  #networks = new Map(); // network -> one bitmap for each session that is credited, ever fewer

  constructor({ settings, node, firstSequence, segments }) {
    this.settings = settings;
    this.node = node;
    this.first = BigInt(firstSequence);
    this.segments = segments;
  }

  /** A ticket that the hub issued, for a session of this network (hex, "" for none) and account. */
  async issued(signedTicket, network, accountId) {
    const ticket = decodeTicket(signedTicket);
    this.#tickets.set(await ticketHash(ticket.body), { ticket, network, accountId });
  }

  /** `{verdict, cap, units, creditedBytes}`. `isLost(sequence)`: the hub no longer has that segment's digest. */
  async judge(bytes, nowS, isLost = () => false) {
    let receipt;
    try {
      receipt = decodeReceipt(bytes);
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      return { ...REFUSED, verdict: "malformed" };
    }
    const known = this.#tickets.get(hex(receipt.ticketHash));
    if (!known) return { ...REFUSED, verdict: "unknown_ticket" };
    const { ticket, network, accountId } = known;
    if (hex(ticket.nodeKey) !== this.node.publicKey) return { ...REFUSED, verdict: "wrong_node" };
    if (!(await verify(ticket.viewerKey, DOMAIN.receipt, receipt.body, receipt.signature))) {
      return { ...REFUSED, verdict: "bad_signature" };
    }
    if (BigInt(nowS) > ticket.settleByS) return { ...REFUSED, verdict: "late" };
    const claimed = this.#claimed(receipt, ticket);
    if (claimed === null) return { ...REFUSED, verdict: "out_of_range" };
    if (!(await this.#digestHolds(receipt, ticket, claimed, isLost))) return { ...REFUSED, verdict: "digest_mismatch" };
    const session = hex(ticket.sessionId);
    const before = this.#credited.get(session) ?? 0n;
    const fresh = claimed & ~before;
    if (!fresh) return { ...REFUSED, verdict: "duplicate" };
    const cap = this.#cap(ticket, network, accountId, claimed | (before & this.#covered(ticket)));
    if (cap) return { ...REFUSED, verdict: "capped", cap };
    const levels = this.#networks.get(network) ?? [];
    const payable = fresh & ~(levels[this.settings.prefix_sessions_max - 1] ?? 0n);
    if (!payable) return { ...REFUSED, verdict: "capped", cap: "prefix_sessions" };
    this.#credited.set(session, before | payable);
    if (network) this.#networks.set(network, credit(levels, payable));
    return { verdict: "accepted", cap: "", units: countBits(payable), creditedBytes: this.#bytes(payable) };
  }

  /** The bits relative to the broadcast's first segment; null when one is outside the ticket or was never published. */
  #claimed(receipt, ticket) {
    let bits = 0n;
    for (let i = 0n; i < 512n; i += 1n) {
      if (!((receipt.bits >> i) & 1n)) continue;
      const sequence = receipt.base + i;
      const published = sequence >= this.first && sequence < this.first + BigInt(this.segments.length);
      if (!published || sequence < ticket.first || sequence > ticket.last) return null;
      bits |= 1n << (sequence - this.first);
    }
    return bits;
  }

  async #digestHolds(receipt, ticket, claimed, isLost) {
    const digests = [];
    for (const [i, segment] of this.segments.entries()) {
      if (!((claimed >> BigInt(i)) & 1n)) continue;
      if (isLost(Number(this.first) + i)) return true; // what the hub lost must not cost a friend
      digests.push(await sha256(concat(ticket.nonce, segment)));
    }
    return hex(await sha256(concat(...digests))) === hex(receipt.digest);
  }

  #cap(ticket, network, accountId, spent) {
    const { node, settings } = this;
    if (node.suspended && !(settings.suspended_signed_paid && ticket.viewerClass === 1)) return "node_suspended";
    if (accountId && accountId === node.friendId) return "own_account";
    if (settings.same_network_forbidden && network && node.networks.has(network)) return "same_network";
    return BigInt(this.#bytes(spent)) > ticket.byteBudget ? "byte_budget" : "";
  }

  #covered(ticket) {
    let bits = 0n;
    for (let i = 0; i < this.segments.length; i += 1) {
      const sequence = this.first + BigInt(i);
      if (sequence >= ticket.first && sequence <= ticket.last) bits |= 1n << BigInt(i);
    }
    return bits;
  }

  #bytes(bits) {
    return this.segments.reduce((sum, segment, i) => sum + (((bits >> BigInt(i)) & 1n) ? segment.length : 0), 0);
  }
}

/** levels[k]: what at least k + 1 sessions of the network are credited for. */
function credit(levels, units) {
  const out = [];
  let carry = units;
  for (const level of levels) {
    out.push(level | carry);
    carry &= level;
  }
  return carry ? [...out, carry] : out;
}
