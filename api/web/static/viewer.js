// Plays a stream, with receipts where the browser can sign them. Made for the watch page and for embedding:
//
//   import { Viewer } from "https://hub.example/static/viewer.js";
//   const viewer = new Viewer(document.querySelector("video"), { slug: "alice" });
//   viewer.addEventListener("change", () => console.log(viewer.state));
//   viewer.start();
//
// Invariant: playing never waits for a receipt. Without WebCrypto's Ed25519 the stream plays as in VLC (the node
// claims, at the lower plain rate); without Media Source Extensions the browser's own HLS player takes over.

import Hls from "./vendor/hls.light.min.mjs";
import { fragmentLoader, NodeHealth, playlistLoader } from "./loader.js";
import { hex, nodeId, parseTicket } from "./protocol.js";
import { makeViewerKey, ReceiptBook } from "./receipts.js";

const HUB = new URL("..", import.meta.url); // this file is {hub}/static/viewer.js
const RETRY_MS_MIN = 1_000;
const RETRY_MS_MAX = 10_000;
const LOOK_TIMEOUT_MS = 5_000;
const PARTS_BUFFER_S = 0.4; // two parts: less stalls
const CATCH_UP_RATE = 1.05;

const HLS_CONFIG = {
  lowLatencyMode: true, // where the hub offers parts
  maxLiveSyncPlaybackRate: 1, // hls.js stops catching up a second from the end of the buffer: see #follow
  liveSyncOnStallIncrease: 0.3, // s further behind after each stall; 1 would double the delay with parts
  backBufferLength: 30,
  manifestLoadPolicy: policy(4_000, 8_000),
  playlistLoadPolicy: policy(4_000, 8_000),
  fragLoadPolicy: policy(6_000, 20_000),
};

export class Viewer extends EventTarget {
  #video;
  #slug;
  #hub;
  #live;
  #token;
  #health = new NodeHealth();
  #key = null;
  #hls = null;
  #book = null;
  #retry = null;
  #retryMs = RETRY_MS_MIN;
  #stopped = true;

  /**
   * What to show. `phase`: "idle" | "connecting" | "waiting" (not live) | "playing". `signing`: receipts are made.
   * `nodeId`: the node that brought the last segment, null when the hub did.
   */
  state = { phase: "idle", signing: false, nodeId: null, fromNodes: 0, fromHub: 0, rescued: 0, receipts: 0 };

  /**
   * `live`: false when the stream is known to be off air: then it is waited for, not tried. `token`: of a friend or
   * creator who watches, so that they are not paid for carrying a stream to themselves.
   */
  constructor(video, { slug, hub = HUB, live = true, token = null }) {
    super();
    this.#video = video;
    this.#slug = slug;
    this.#live = live;
    this.#token = token;
    this.#hub = new URL(hub);
  }

  async start() {
    if (!this.#stopped) return;
    this.#stopped = false;
    this.#key ??= Hls.isSupported() ? await makeViewerKey() : null;
    this.#video.addEventListener("playing", this.#onPlaying);
    this.#video.addEventListener("timeupdate", this.#follow);
    this.#video.addEventListener("ended", this.#onGone);
    addEventListener("pagehide", this.#onHide);
    document.addEventListener("visibilitychange", this.#onHide);
    if (this.#live) await this.#open();
    else this.#later();
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#retry);
    this.#close();
    this.#video.removeEventListener("playing", this.#onPlaying);
    this.#video.removeEventListener("timeupdate", this.#follow);
    this.#video.removeEventListener("ended", this.#onGone);
    this.#video.removeEventListener("error", this.#onGone);
    removeEventListener("pagehide", this.#onHide);
    document.removeEventListener("visibilitychange", this.#onHide);
    this.#set({ phase: "idle" });
  }

  /** Connect at once instead of at the next retry: the page has learned that the stream is live. */
  wake() {
    if (this.#stopped || this.state.phase !== "waiting") return;
    clearTimeout(this.#retry);
    void this.#open();
  }

  async #open() {
    this.#set({ phase: "connecting" });
    const address = new URL(`live/${this.#slug}.m3u8`, this.#hub).href;
    if (!Hls.isSupported()) return this.#playNatively(address);
    let playlist = `${address}?direct`; // the loader copes with addresses that change
    try {
      if (this.#key) playlist = await this.#openSession();
    } catch {
      return this.#later();
    }
    if (!this.#stopped) this.#play(playlist);
  }

  async #openSession() {
    const response = await fetch(new URL("api/sessions", this.#hub), {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        ...(this.#token && { Authorization: `Bearer ${this.#token}` }),
      },
      body: JSON.stringify({ stream: this.#slug, viewer_key: hex(this.#key.publicKey) }),
    });
    if (!response.ok) throw new Error(`no session: HTTP ${response.status}`);
    // By this page's own way to the hub, whatever name the hub knows itself by.
    return new URL(new URL((await response.json()).playlist_url).pathname, this.#hub).href;
  }

  #play(playlist) {
    if (this.#key) {
      this.#book = new ReceiptBook(this.#key, new URL("api/receipts", this.#hub).href, (_where, ok) => {
        if (ok) this.#set({ receipts: this.state.receipts + 1 });
      });
      this.#set({ signing: true });
    }
    const loader = fragmentLoader(this.#health, {
      node: (segment, data) => {
        this.#book?.arrived(segment.ticket, segment.nodeUrl, segment.sequence, data);
        this.#set({ nodeId: nodeIdOf(segment.ticket), fromNodes: this.state.fromNodes + 1 });
      },
      hub: (afterFailure) => {
        const rescued = this.state.rescued + (afterFailure ? 1 : 0);
        this.#set({ nodeId: null, fromHub: this.state.fromHub + 1, rescued });
      },
      failed: () => void this.#book?.sendToHub(),
    });
    const hls = new Hls({
      ...HLS_CONFIG,
      fLoader: loader,
      pLoader: playlistLoader(Hls.DefaultConfig.loader),
      workerPath: new URL("static/vendor/hls.worker.js", this.#hub).href,
    });
    this.#hls = hls;
    hls.on(Hls.Events.ERROR, (_event, data) => {
      if (!data.fatal || this.#hls !== hls) return;
      if (data.type === Hls.ErrorTypes.MEDIA_ERROR && !hls.recovered) {
        hls.recovered = true;
        hls.recoverMediaError();
      } else {
        this.#onGone();
      }
    });
    hls.loadSource(playlist);
    hls.attachMedia(this.#video);
    void this.#video.play().catch(() => {}); // not allowed before a tap: the controls are there
  }

  #playNatively(playlist) {
    this.#video.addEventListener("error", this.#onGone, { once: true });
    this.#video.src = playlist;
    void this.#video.play().catch(() => {});
  }

  #close() {
    this.#book?.close();
    this.#book = null;
    this.#hls?.destroy();
    this.#hls = null;
  }

  #later() {
    this.#close();
    this.#set({ phase: "waiting", nodeId: null });
    clearTimeout(this.#retry);
    // Spread out: the viewers of a stream lose it in the same second.
    this.#retry = setTimeout(() => void this.#look(), this.#retryMs * (0.5 + Math.random()));
    this.#retryMs = Math.min(RETRY_MS_MAX, 2 * this.#retryMs);
  }

  /** Sessions are opened for streams that are live: a page left open overnight asks for none. */
  async #look() {
    let live = false;
    try {
      const url = new URL(`api/streams/${this.#slug}`, this.#hub);
      const response = await fetch(url, { signal: AbortSignal.timeout(LOOK_TIMEOUT_MS) });
      live = response.ok && (await response.json()).state === "LIVE";
    } catch {
      // The hub is away: looked for again.
    }
    if (this.#stopped || this.state.phase !== "waiting") return;
    if (live) await this.#open();
    else this.#later();
  }

  /** With parts the second that starting took is most of the delay: made good in one step, at the first picture. */
  #catchUp() {
    const hls = this.#hls;
    const { buffered, currentTime } = this.#video;
    if (!hls || hls.caughtUp || !hls.latestLevelDetails?.partList?.length || !buffered.length) return;
    hls.caughtUp = true;
    const live = Math.min(hls.liveSyncPosition ?? 0, buffered.end(buffered.length - 1) - PARTS_BUFFER_S);
    if (live > currentTime + 0.1) this.#video.currentTime = live;
  }

  /** What a stall, or a start that took its time, has cost is made good a little at a time. */
  #follow = () => {
    const hls = this.#hls;
    const { buffered, currentTime, playbackRate, paused } = this.#video;
    if (!hls?.latestLevelDetails?.partList?.length || !buffered.length || paused) return;
    const behind = hls.latency - hls.targetLatency;
    const spare = buffered.end(buffered.length - 1) - currentTime - PARTS_BUFFER_S;
    const catching = playbackRate > 1;
    const rate = behind > (catching ? 0.02 : 0.15) && spare > (catching ? 0 : 0.1) ? CATCH_UP_RATE : 1;
    if (rate !== playbackRate) this.#video.playbackRate = rate;
  };

  #onPlaying = () => {
    this.#retryMs = RETRY_MS_MIN;
    this.#catchUp();
    this.#set({ phase: "playing" });
  };

  #onGone = () => {
    if (!this.#stopped) this.#later();
  };

  #onHide = () => {
    if (document.visibilityState === "hidden") void this.#book?.flush();
  };

  #set(change) {
    Object.assign(this.state, change);
    this.dispatchEvent(new CustomEvent("change", { detail: this.state }));
  }
}

function nodeIdOf(ticketText) {
  try {
    return nodeId(parseTicket(ticketText).nodeKey);
  } catch {
    return null;
  }
}

function policy(maxTimeToFirstByteMs, maxLoadTimeMs) {
  const retry = { maxNumRetry: 6, retryDelayMs: 500, maxRetryDelayMs: 4_000 };
  return { default: { maxTimeToFirstByteMs, maxLoadTimeMs, timeoutRetry: retry, errorRetry: retry } };
}
