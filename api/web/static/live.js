// Server-Sent Events with a token: the browser's own EventSource cannot send one, and must not put it into an address.
// Goes on where it was (Last-Event-ID) after every break, ever more slowly while the hub is away.

const RETRY_MS = 1_000;
const RETRY_MS_MAX = 30_000;
const SILENCE_MS = 40_000; // the hub says something every 15 s
const FINAL = new Set([401, 403, 404]);

/** Calls `onEvent(data)` for each event. Returns an object whose `connected` says whether polling can rest. */
export function follow(path, { token, onEvent }) {
  const state = { connected: false };
  void run();
  return state;

  async function run() {
    let id = null;
    let pause = RETRY_MS;
    for (;;) {
      const stop = new AbortController();
      let silence;
      const heard = () => {
        clearTimeout(silence);
        silence = setTimeout(() => stop.abort(), SILENCE_MS);
      };
      try {
        heard();
        const headers = { Accept: "text/event-stream" };
        if (token) headers.Authorization = `Bearer ${token}`;
        if (id !== null) headers["Last-Event-ID"] = id;
        const response = await fetch(path, { headers, signal: stop.signal, cache: "no-store" });
        if (FINAL.has(response.status)) return;
        if (response.ok) {
          for await (const event of events(response.body, heard)) {
            state.connected = true;
            pause = RETRY_MS;
            id = event.id ?? id;
            onEvent(JSON.parse(event.data));
          }
        }
      } catch {
        // away, or silent for too long: once more, later
      }
      clearTimeout(silence);
      state.connected = false;
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(2 * pause, RETRY_MS_MAX);
    }
  }
}

async function* events(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const event = {};
      for (const line of part.split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) event[line.slice(0, colon)] = line.slice(colon + 2);
      }
      if (event.data !== undefined) yield event;
    }
  }
}
