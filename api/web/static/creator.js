// The creator's page: the crew that carries them now, the budget, and a new stream key. Kept up to date while it is open.

import { door } from "/static/door.js";
import { $, TIME, WHEN, ask, bytes, cell, figure, heard, money, named } from "/static/figures.js";
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
  const watch = cell("a", own.stream.slug);
  watch.href = `/watch/${own.stream.slug}`;
  at.querySelector("h2").append(watch);
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
  const names = stream.crew.flatMap((node, i) => [i ? ", " : "", named(node.name), ` (${node.viewers})`]);
  const nobody = live ? "the hub alone" : "nobody: you are not live";
  at.querySelector(".crew-now").replaceChildren(...(names.length ? names : [nobody]));
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
  figure(at.querySelector(".budget"), money(own.budget_micro));
  figure(at.querySelector(".earned"), money(own.earned_micro));
  const due = own.estimate;
  at.querySelector(".estimate").hidden = !due?.credited_bytes;
  at.querySelector(".estimate").textContent = due
    ? `Since the last settlement: ${bytes(due.credited_bytes)} delivered, about ${money(due.amount_micro)}. It leaves the budget soon after ${TIME.format(due.ends_us / 1000)}.`
    : "";
  const t = own.tariff;
  at.querySelector(".price").textContent = t
    ? `Amounts in ${own.unit}. A delivered GB costs ${money(t.rate_micro_per_gb)}, the hub's fee of ${t.fee_bp / 100} % included. ` +
      `Of the rest ${t.floor_bp / 100} % go in equal parts to everybody who carried, the others by what was delivered; a GB to a ` +
      `player without receipts counts ${t.plain_bp / 100} %, up to ${t.plain_income_cap_bp / 100} % of a node's income. Nothing is spent beyond the budget.`
    : `Amounts in ${own.unit}. No price is set: nothing is paid for.`;
  at.querySelector(".crew-none").hidden = own.crew.length > 0;
  const table = at.querySelector(".crew");
  table.hidden = own.crew.length === 0;
  table.tBodies[0].replaceChildren(
    ...own.crew.map((member) => {
      const tr = document.createElement("tr");
      tr.append(
        cell("td", ""),
        cell("td", bytes(member.credited_bytes), "number"),
        cell("td", money(member.earned_micro), "number"),
      );
      tr.firstChild.append(named(member.name));
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
