// The creator's page: the crew that carries them now, the budget, and a new stream key. Kept up to date while it is open.

import { door } from "/static/door.js";
import { $, TIME, WHEN, ask, bytes, cell, heard, money } from "/static/figures.js";
import { follow } from "/static/live.js";

const POLL_MS = 15_000; // also tells soon why an encoder is refused: OBS says no more than "disconnected"

async function open(token) {
  const { streams } = await ask("/api/creators/me/streams", token);
  $("login").hidden = true;
  $("inside").hidden = false;
  $("none").hidden = streams.length > 0;
  const sections = new Map(streams.map((own) => [own.stream.slug, section(own, token)]));
  $("streams").replaceChildren(...sections.values());
  for (const [slug, at] of sections) {
    follow(`/api/streams/${slug}/events`, { onEvent: (stream) => showNow(at, stream) });
  }
  setInterval(async () => {
    const found = await ask("/api/creators/me/streams", token).catch(() => null);
    heard(found !== null);
    for (const own of found?.streams ?? []) {
      const at = sections.get(own.stream.slug);
      if (at) showMoney(at, own);
      if (at) showRefused(at, own);
      if (at) showNow(at, own.stream); // also where a live connection cannot be held
    }
  }, POLL_MS);
}

function section(own, token) {
  const at = $("stream").content.firstElementChild.cloneNode(true);
  at.querySelector("h2").textContent = own.stream.slug;
  at.querySelector(".rotate").onclick = () => void rotate(at, own.stream.slug, token);
  showMoney(at, own);
  showRefused(at, own);
  showNow(at, own.stream);
  return at;
}

function showNow(at, stream) {
  const live = stream.state === "LIVE";
  at.dataset.live = String(live);
  at.querySelector(".pill").textContent = live ? (stream.interrupted ? "Reconnecting" : "Live") : "Offline";
  at.querySelector(".viewers").textContent = stream.viewers;
  const names = stream.crew.map((node) => `${node.name} (${node.viewers})`);
  at.querySelector(".crew-now").textContent = names.join(", ") || (live ? "the hub alone" : "nobody: you are not live");
  at.querySelector(".stale").hidden = stream.state !== "STALE";
}

function showRefused(at, own) {
  const panel = at.querySelector(".refused");
  const text = own.refused ? `What your encoder sent was refused (${WHEN.format(own.refused_us / 1000)}): ${own.refused}.` : "";
  if (panel.textContent === text) return; // a screen reader says it once
  panel.textContent = text;
  panel.hidden = !text;
}

function showMoney(at, own) {
  at.querySelector(".budget").textContent = money(own.budget_micro);
  at.querySelector(".earned").textContent = money(own.earned_micro);
  const due = own.estimate;
  at.querySelector(".estimate").hidden = !due?.credited_bytes;
  at.querySelector(".estimate").textContent = due
    ? `Since the last settlement: ${bytes(due.credited_bytes)} delivered, about ${money(due.amount_micro)}. It leaves the budget soon after ${TIME.format(due.ends_us / 1000)}.`
    : "";
  const t = own.tariff;
  at.querySelector(".price").textContent = t
    ? `Amounts in ${own.unit}. A delivered GB costs ${money(t.rate_micro_per_gb)}, the hub's fee of ${t.fee_bp / 100} % included. Nothing is spent beyond the budget.`
    : `Amounts in ${own.unit}. No price is set: nothing is paid for.`;
  at.querySelector(".crew-none").hidden = own.crew.length > 0;
  const table = at.querySelector(".crew");
  table.hidden = own.crew.length === 0;
  table.tBodies[0].replaceChildren(
    ...own.crew.map((member) => {
      const tr = document.createElement("tr");
      tr.append(
        cell("td", member.name),
        cell("td", bytes(member.credited_bytes), "number"),
        cell("td", money(member.earned_micro), "number"),
      );
      return tr;
    }),
  );
}

async function rotate(at, slug, token) {
  if (!confirm(`The present key of ${slug} opens nothing any more. Go on?`)) return;
  const shown = at.querySelector(".new-key");
  shown.hidden = false;
  try {
    const { stream_key: key } = await ask(`/api/streams/${slug}/key`, token, { method: "POST" });
    shown.querySelector("code").textContent = key;
  } catch (error) {
    shown.querySelector("code").textContent = error.message;
  }
}

door("creator", open);
