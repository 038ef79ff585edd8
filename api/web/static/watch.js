// Binds the watch page to a Viewer: who carries the stream, how many watch, how many receipts were signed.

import { Viewer } from "./viewer.js";

const POLL_MS = 5_000;
const POLL_WAITING_MS = 2_500;
const AWAY_POLLS = 2;
const POLL_SOON_MS = 500; // somebody the page does not know by name has begun to carry the stream

const slug = document.body.dataset.slug;
const video = document.querySelector("video");
let stream = { state: document.body.dataset.state, interrupted: false, viewers: 0, crew: [] };
const names = new Map(); // of every node that ever carried the stream while this page was open
const viewer = new Viewer(video, {
  slug,
  live: stream.state === "LIVE",
  token: sessionStorage.getItem("streamrp2p.friend-token"), // of a friend whose own page was open in this tab
});
let timer = null;
let askedFor = null;
let unheard = 0; // polls in a row that the hub did not answer

const show = (id, text) => {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
};

function render() {
  const { phase, signing, nodeId, fromNodes, receipts } = viewer.state;
  const live = stream.state === "LIVE";
  document.body.dataset.phase = phase;
  const away = unheard >= AWAY_POLLS && phase !== "playing"; // what plays, plays on from the friends' nodes
  document.body.dataset.live = String(live && !stream.interrupted && !away);
  show("state", away || (live && stream.interrupted) ? "Reconnecting" : live ? "Live" : "Offline");
  document.title = document.title.replace(/^(● )?/, live ? "● " : "");
  renderOverlay(phase, live, away);
  renderCarrier(phase, nodeId);
  show("viewers", String(stream.viewers));
  show("segments", String(fromNodes));
  show("receipts", signing || phase !== "playing" ? String(receipts) : "–");
  document.getElementById("unmute").hidden = phase !== "playing" || !video.muted;
  renderCrew(nodeId);
}

function renderOverlay(phase, live, away) {
  // A browser that wants a tap before it plays shows its first picture and its controls.
  document.getElementById("waiting").hidden = phase === "playing" || (live && !away && video.readyState >= 2);
  if (away) {
    show("waiting-title", "The hub does not answer");
    show("waiting-text", "It goes on by itself when the hub is back.");
  } else if (!live) {
    show("waiting-title", `${slug} is not live right now`);
    show("waiting-text", "Stay here: this page starts playing by itself.");
  } else if (stream.interrupted) {
    show("waiting-title", "The creator's connection broke");
    show("waiting-text", "It goes on by itself when they are back.");
  } else {
    show("waiting-title", "Starting…");
    show("waiting-text", "The first picture is on its way.");
  }
}

function renderCarrier(phase, nodeId) {
  document.querySelector(".carrier").hidden = phase !== "playing";
  show("carrier", nodeId ? (names.get(nodeId) ?? "a friend") : "the hub itself");
  if (nodeId && !names.has(nodeId) && askedFor !== nodeId) {
    askedFor = nodeId; // once: the read models may not know the node yet, the next poll does
    schedule(POLL_SOON_MS);
  }
}

function renderCrew(nodeId) {
  document.getElementById("crew").hidden = stream.crew.length === 0;
  const items = stream.crew.map((node) => {
    const item = document.createElement("li");
    item.classList.toggle("mine", node.node_id === nodeId);
    const name = document.createElement("bdi"); // written from right to left, it turns nothing around it
    name.textContent = node.name;
    const helping = document.createElement("span");
    helping.className = "quiet";
    helping.textContent = node.viewers === 1 ? "helping 1 viewer" : `helping ${node.viewers} viewers`;
    item.append(name, helping);
    return item;
  });
  document.getElementById("crew-list").replaceChildren(...items);
}

function schedule(ms) {
  clearTimeout(timer);
  timer = setTimeout(() => void poll(), ms);
}

async function poll() {
  try {
    const response = await fetch(`/api/streams/${slug}`, { signal: AbortSignal.timeout(POLL_MS) });
    unheard = 0;
    if (response.ok) {
      stream = await response.json();
      for (const node of stream.crew) names.set(node.node_id, node.name);
      if (stream.state === "LIVE") viewer.wake();
      render();
    }
  } catch {
    unheard += 1; // the picture goes on from the friends' nodes, the next poll tells more
    render();
  }
  schedule(viewer.state.phase === "playing" ? POLL_MS : POLL_WAITING_MS);
}

viewer.addEventListener("change", render);
video.addEventListener("volumechange", render);
video.addEventListener("loadeddata", render);
document.getElementById("unmute").addEventListener("click", () => {
  video.muted = false;
  void video.play();
});
document.getElementById("copy").addEventListener("click", async (event) => {
  const button = event.currentTarget;
  const address = document.getElementById("vlc");
  try {
    await navigator.clipboard.writeText(address.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(address); // plain http: the browser has no clipboard for us
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1_500);
});

document.getElementById("vlc").textContent = new URL(`/live/${slug}.m3u8`, location.href).href;
render();
void poll();
void viewer.start();
