// Binds the watch page to a Viewer: who carries the stream, how many watch, how many receipts were signed.

import { Viewer } from "./viewer.js";

const POLL_MS = 5_000;

const slug = document.body.dataset.slug;
const video = document.querySelector("video");
const viewer = new Viewer(video, { slug });
let stream = { state: document.body.dataset.state, viewers: 0, crew: [] };

const show = (id, text) => {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
};

function render() {
  const { phase, signing, nodeId, fromNodes, receipts } = viewer.state;
  const live = stream.state === "LIVE";
  document.body.dataset.phase = phase;
  document.body.dataset.live = String(live);
  show("state", live ? "Live" : stream.state === "OFFLINE" ? "Offline" : "Not started yet");
  const carrier = stream.crew.find((node) => node.node_id === nodeId);
  show("carrier", nodeId ? (carrier?.name ?? "a friend") : phase === "playing" ? "the hub itself" : "…");
  show("viewers", String(stream.viewers));
  show("segments", String(fromNodes));
  show("receipts", signing || phase !== "playing" ? String(receipts) : "–");
  document.getElementById("waiting").hidden = phase === "playing" || live;
  document.getElementById("unmute").hidden = phase !== "playing" || !video.muted;
  renderCrew(nodeId);
}

function renderCrew(nodeId) {
  document.getElementById("crew").hidden = stream.crew.length === 0;
  const items = stream.crew.map((node) => {
    const item = document.createElement("li");
    item.classList.toggle("mine", node.node_id === nodeId);
    const name = document.createElement("span");
    name.textContent = node.name;
    const helping = document.createElement("span");
    helping.className = "quiet";
    helping.textContent = node.viewers === 1 ? "helping 1 viewer" : `helping ${node.viewers} viewers`;
    item.append(name, helping);
    return item;
  });
  document.getElementById("crew-list").replaceChildren(...items);
}

async function poll() {
  try {
    const response = await fetch(`/api/streams/${slug}`, { signal: AbortSignal.timeout(POLL_MS) });
    if (response.ok) {
      stream = await response.json();
      if (stream.state === "LIVE") viewer.wake();
      render();
    }
  } catch {
    // The hub is away: the picture goes on from the friends' nodes, the next poll tells more.
  }
  setTimeout(() => void poll(), POLL_MS);
}

viewer.addEventListener("change", render);
video.addEventListener("volumechange", render);
document.getElementById("unmute").addEventListener("click", () => {
  video.muted = false;
  void video.play();
});
document.getElementById("copy").addEventListener("click", async (event) => {
  const button = event.currentTarget;
  await navigator.clipboard?.writeText(document.getElementById("vlc").textContent);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1_500);
});

document.getElementById("vlc").textContent = new URL(`/live/${slug}.m3u8`, location.href).href;
render();
void poll();
void viewer.start();
