// The viewer's receipts: what arrived from each node, stated in signed, cumulative form.
//
// Invariant: a receipt claims only segments whose every byte came from the node its ticket names, and a newer receipt
// of a ticket claims everything an older one did. The newest receipt is always signed beforehand, because a page that
// is being closed has no time left to sign one.

import { hex, noncePrefixed, parseTicket, receiptBody, segmentDigest, signReceipt, ticketHash } from "./protocol.js";

const NODE_INTERVAL_MS = 10_000;
const HUB_INTERVAL_MS = 60_000;
const POST_TIMEOUT_MS = 5_000;
const TICKETS_MAX = 16; // the newest ones; older receipts have been at the hub for many minutes by then

/** A key that never leaves the browser, or null where WebCrypto has no Ed25519 (then there are no receipts). */
export async function makeViewerKey() {
  if (!globalThis.crypto?.subtle) return null;
  try {
    const pair = await crypto.subtle.generateKey({ name: "Ed25519" }, false, ["sign", "verify"]);
    const publicKey = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));
    return { publicKey, privateKey: pair.privateKey };
  } catch {
    return null;
  }
}

export class ReceiptBook {
  #key;
  #hubUrl;
  #onReceipt;
  #tickets = new Map(); // ticket text -> Promise of an entry, or of null when it is none of ours
  #timers = [];

  /** `hubUrl` is the hub's POST /api/receipts; `onReceipt(where, ok)` is told of each delivery. */
  constructor(key, hubUrl, onReceipt) {
    this.#key = key;
    this.#hubUrl = hubUrl;
    this.#onReceipt = onReceipt;
    this.#timers = [
      setInterval(() => void this.#sendToNodes(), NODE_INTERVAL_MS),
      setInterval(() => void this.sendToHub(), HUB_INTERVAL_MS),
    ];
  }

  /**
   * A segment arrived whole from a node. `nodeUrl` is the node's base URL, `segment` an ArrayBuffer (copied before
   * this returns).
   */
  arrived(ticketText, nodeUrl, sequence, segment) {
    let ticket;
    try {
      ticket = parseTicket(ticketText);
    } catch {
      return; // a hub newer than this page: play on without a receipt
    }
    const prefixed = noncePrefixed(ticket.nonce, new Uint8Array(segment));
    void this.#record(ticketText, ticket, nodeUrl, sequence, prefixed).catch((error) => console.warn(error));
  }

  async #record(text, ticket, nodeUrl, sequence, prefixed) {
    if (!this.#tickets.has(text)) this.#tickets.set(text, this.#open(ticket, nodeUrl));
    while (this.#tickets.size > TICKETS_MAX) this.#tickets.delete(this.#tickets.keys().next().value);
    const entry = await this.#tickets.get(text);
    if (!entry || sequence < ticket.firstSequence || sequence > ticket.lastSequence) return;
    const digest = await segmentDigest(prefixed);
    // One at a time for a ticket: counters and claims must grow together.
    entry.queue = entry.queue.then(async () => {
      if (entry.digests.has(sequence)) return;
      entry.digests.set(sequence, digest);
      entry.counter += 1;
      const body = await receiptBody(entry);
      entry.signed = await signReceipt(body, this.#key.privateKey);
      entry.signedCounter = entry.counter;
    });
    await entry.queue;
  }

  async #open(ticket, nodeUrl) {
    if (ticket.viewerClass !== 1 || hex(ticket.viewerKey) !== hex(this.#key.publicKey)) return null;
    return {
      hash: await ticketHash(ticket),
      nodeUrl,
      baseSequence: ticket.firstSequence,
      digests: new Map(),
      counter: 0,
      queue: Promise.resolve(),
      signed: null,
      signedCounter: 0,
      nodeCounter: 0, // the newest receipt the node has acknowledged
      hubCounter: 0,
      atHub: false, // a receipt is on its way there
    };
  }

  async #entries() {
    const entries = await Promise.all(this.#tickets.values());
    return entries.filter((entry) => entry?.signed);
  }

  async #sendToNodes() {
    for (const entry of await this.#entries()) {
      // What the hub has judged already the node need not send.
      if (Math.max(entry.nodeCounter, entry.hubCounter) >= entry.signedCounter) continue;
      const counter = entry.signedCounter;
      const ok = await post(`${entry.nodeUrl}/receipts`, entry.signed);
      this.#onReceipt("node", ok);
      if (ok) entry.nodeCounter = counter;
      else await this.#sendOneToHub(entry);
    }
  }

  /** Once a minute, and whenever a node has stopped answering: one crash then loses nothing. */
  async sendToHub() {
    for (const entry of await this.#entries()) await this.#sendOneToHub(entry);
  }

  async #sendOneToHub(entry) {
    if (entry.atHub || entry.hubCounter >= entry.signedCounter) return;
    const counter = entry.signedCounter;
    entry.atHub = true;
    const ok = await post(this.#hubUrl, entry.signed);
    entry.atHub = false;
    this.#onReceipt("hub", ok);
    if (ok) entry.hubCounter = counter;
  }

  /** The page goes away: hand the newest receipts to the browser, which sends them without us. */
  async flush() {
    for (const entry of await this.#entries()) {
      if (entry.hubCounter >= entry.signedCounter) continue;
      entry.hubCounter = entry.signedCounter;
      const blob = new Blob([entry.signed], { type: "application/octet-stream" });
      // A beacon to another site takes cookies along, which the hub's answer to everybody ("*") does not allow.
      if (new URL(this.#hubUrl).origin === location.origin && navigator.sendBeacon?.(this.#hubUrl, blob)) continue;
      void post(this.#hubUrl, entry.signed);
    }
  }

  close() {
    this.#timers.forEach(clearInterval);
    void this.flush();
  }
}

async function post(url, body) {
  try {
    const response = await fetch(url, {
      method: "POST",
      body,
      headers: { "Content-Type": "application/octet-stream" },
      keepalive: true,
      credentials: "omit",
      signal: AbortSignal.timeout(POST_TIMEOUT_MS),
    });
    return response.ok;
  } catch {
    return false;
  }
}
