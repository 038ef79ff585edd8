// Loaders for hls.js: segments from the friend's node first, from the hub the moment the node fails or stalls.
//
// Invariant: a segment handed to the player is whole and comes from one place, and `on.node` hears of it only when that
// place was the node. A node that failed is left alone for a while, so that one sleeping laptop costs one pause, not one
// per segment.
//
// hls.js refuses a live playlist whose segments have other paths than before, and ours change whenever the hub steers the
// viewer to another node. So the playlist loader gives every segment its lasting address, that of the hub's own copy,
// and puts the node's address into the query, which may change.

const STALL_MS = 1_500; // no byte for this long: the node has gone
const REST_MS_MIN = 10_000;
const REST_MS_MAX = 120_000;
const SEGMENT_BYTES_MAX = 64 * 1024 * 1024;
const NODE_SEGMENT_PATH = /^(.*)\/segments\/[0-9a-f-]{36}\/((\d+)\.(?:ts|m4s))$/;
const HUB_SEGMENT_PATH = /\/live\/[^/]+\/[0-9a-f-]{36}\/(\d+\.(?:ts|m4s))$/;

/** The node's side of a segment: `{url, nodeUrl, name, sequence, ticket}`, or null when it is no node's. */
function nodeSegment(url) {
  const parsed = new URL(url);
  const match = NODE_SEGMENT_PATH.exec(parsed.pathname);
  const ticket = parsed.searchParams.get("t");
  if (!match || !ticket) return null;
  return { url, nodeUrl: parsed.origin + match[1], name: match[2], sequence: Number(match[3]), ticket };
}

/** A media playlist in which each segment has its lasting address; anything else is left as it is. */
export function withLastingAddresses(playlist, playlistUrl) {
  const lines = playlist.split("\n").map((line) => {
    if (!line || line.startsWith("#")) return line;
    const url = new URL(line.trim(), playlistUrl);
    const segment = nodeSegment(url.href);
    if (segment) return `${segment.name}?node=${encodeURIComponent(segment.url)}`;
    const fromHub = HUB_SEGMENT_PATH.exec(url.pathname);
    return fromHub ? fromHub[1] : line;
  });
  return lines.join("\n");
}

/** The class for hls.js's `pLoader`, made from its own loader. */
export function playlistLoader(Loader) {
  return class PlaylistLoader extends Loader {
    load(context, config, callbacks) {
      const onSuccess = (response, ...rest) => {
        if (typeof response.data === "string") {
          response.data = withLastingAddresses(response.data, response.url || context.url);
        }
        callbacks.onSuccess(response, ...rest);
      };
      super.load(context, config, { ...callbacks, onSuccess });
    }
  };
}

/** Nodes that failed lately, with the time until which they are left alone. */
export class NodeHealth {
  #rests = new Map();

  usable(nodeUrl, nowMs) {
    return nowMs >= (this.#rests.get(nodeUrl)?.untilMs ?? 0);
  }

  failed(nodeUrl, nowMs) {
    const restMs = Math.min(REST_MS_MAX, 2 * (this.#rests.get(nodeUrl)?.restMs ?? REST_MS_MIN / 2));
    this.#rests.set(nodeUrl, { restMs, untilMs: nowMs + restMs });
  }

  served(nodeUrl) {
    this.#rests.delete(nodeUrl);
  }
}

/** The class for hls.js's `fLoader`. `on.node(segment, bytes)`, `on.hub(afterFailure)`, `on.failed(nodeUrl)`. */
export function fragmentLoader(health, on) {
  return class FragmentLoader {
    constructor() {
      this.context = null;
      this.stats = newStats();
      this.abortController = new AbortController();
      this.callbacks = null;
    }

    load(context, config, callbacks) {
      this.context = context;
      this.callbacks = callbacks;
      this.stats.loading.start = performance.now();
      this.#load(context, config).then(
        (data) => {
          if (this.stats.aborted) return;
          this.stats.loading.end = performance.now();
          this.stats.loaded = this.stats.total = data.byteLength;
          const elapsedMs = Math.max(1, this.stats.loading.end - this.stats.loading.first);
          this.stats.bwEstimate = (data.byteLength * 8000) / elapsedMs;
          callbacks.onSuccess({ url: context.url, data, code: 200 }, this.stats, context, null);
        },
        (error) => {
          if (this.stats.aborted) return;
          const code = error instanceof HttpError ? error.status : 0;
          callbacks.onError({ code, text: error.message }, context, null, this.stats);
        },
      );
    }

    async #load(context, config) {
      const atHub = new URL(context.url);
      const fromNode = atHub.searchParams.get("node");
      atHub.search = "";
      const segment = fromNode && nodeSegment(fromNode);
      const { maxTimeToFirstByteMs, maxLoadTimeMs } = config.loadPolicy;
      const tryNode = segment && health.usable(segment.nodeUrl, performance.now());
      if (tryNode) {
        try {
          const data = await this.#fetch(segment.url, STALL_MS, maxLoadTimeMs);
          health.served(segment.nodeUrl);
          on.node(segment, data);
          return data;
        } catch (error) {
          if (this.stats.aborted) throw error;
          health.failed(segment.nodeUrl, performance.now());
          on.failed(segment.nodeUrl);
        }
      }
      const data = await this.#fetch(atHub.href, maxTimeToFirstByteMs, maxLoadTimeMs);
      on.hub(Boolean(tryNode));
      return data;
    }

    /** The whole body as an ArrayBuffer. Rejects after `stallMs` without a byte or `totalMs` in all. */
    async #fetch(url, stallMs, totalMs) {
      const attempt = new AbortController();
      const stop = () => attempt.abort();
      this.abortController.signal.addEventListener("abort", stop);
      const total = setTimeout(stop, totalMs);
      let stall = setTimeout(stop, stallMs);
      try {
        const response = await fetch(url, { signal: attempt.signal, credentials: "omit" });
        if (!response.ok) throw new HttpError(response.status);
        const length = Number(response.headers.get("Content-Length") ?? 0);
        const chunks = [];
        let size = 0;
        for (const reader = response.body.getReader(); ; ) {
          const { done, value } = await reader.read();
          if (done) break;
          clearTimeout(stall);
          stall = setTimeout(stop, stallMs);
          if (!this.stats.loading.first) this.stats.loading.first = performance.now();
          size += value.byteLength;
          if (size > SEGMENT_BYTES_MAX) throw new Error("the segment is too large");
          this.stats.loaded = size;
          chunks.push(value);
        }
        if (size === 0 || (length && size !== length)) throw new Error("the segment is incomplete");
        return joined(chunks, size);
      } finally {
        clearTimeout(stall);
        clearTimeout(total);
        this.abortController.signal.removeEventListener("abort", stop);
        attempt.abort();
      }
    }

    abort() {
      if (this.stats.aborted || this.stats.loading.end) return;
      this.stats.aborted = true;
      this.abortController.abort();
      this.callbacks?.onAbort?.(this.stats, this.context, null);
    }

    destroy() {
      this.stats.aborted ||= !this.stats.loading.end;
      this.callbacks = null;
      this.abortController.abort();
    }
  };
}

class HttpError extends Error {
  constructor(status) {
    super(`HTTP ${status}`);
    this.status = status;
  }
}

function joined(chunks, size) {
  const out = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    out.set(chunk, at);
    at += chunk.byteLength;
  }
  return out.buffer;
}

function newStats() {
  return {
    aborted: false,
    loaded: 0,
    retry: 0,
    total: 0,
    chunkCount: 0,
    bwEstimate: 0,
    loading: { start: 0, first: 0, end: 0 },
    parsing: { start: 0, end: 0 },
    buffering: { start: 0, first: 0, end: 0 },
  };
}
