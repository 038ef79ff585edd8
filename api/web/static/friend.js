// The friend's page: the statement behind their token, kept up to date while it is open. The token stays in this tab.

import { door } from "/static/door.js";
import { $, TIME, WHEN, ask, bytes, cell, figure, heard, money, named, viewers } from "/static/figures.js";
import { follow } from "/static/live.js";
import { whyButton } from "/static/why.js";

const POLL_MS = 15_000;
const WHY = {
  delivery: "delivered",
  delivery_late: "delivered, receipt came late",
  plain_delivery: "delivered to a player without receipts",
  plain_delivery_late: "delivered to a player without receipts, late",
  over_rate: "more than spot checks say your line carries: not paid",
  floor_share: "floor share, for being there",
  hold_released: "hold over: now available",
  payout_reserved: "payout on its way",
  payout_confirmed: "paid out",
  payout_failed: "payout failed: available again",
};
// Lines whose reason is what a person wrote; "taken" are those that make it less.
const DECIDED = {
  disputed: "in dispute, waits for the decision",
  dispute_upheld: "taken back, the dispute was upheld",
  dispute_rejected: "the dispute was rejected, the line holds",
  payout_returned: "the payout came back, available again",
  adjusted_up: "correction",
  adjusted_down: "correction",
};
const TAKEN = new Set(["dispute_upheld", "adjusted_down"]);

let token = "";
let live = null;
const shown = new Set(); // lines, by their place in the log: one may be told twice

function row(line) {
  const why = cell("td", line.kind in DECIDED ? `${DECIDED[line.kind]}: ${line.reason}` : (WHY[line.reason] ?? line.reason));
  // The place in the log, as `streamrp2p explain` takes it.
  why.append(cell("time", `${WHEN.format(line.at_us / 1000)} · ${line.position}:${line.line}`));
  const button = whyButton(line, token);
  if (button) why.append(button);
  const tr = document.createElement("tr");
  tr.append(why, cell("td", bytes(line.credited_bytes), "number"), cell("td", money(TAKEN.has(line.kind) ? -line.amount_micro : line.amount_micro), "number"));
  return tr;
}

function load(before) {
  return ask(`/api/friends/me/statement${before ? `?before=${before}` : ""}`, token);
}

function show(statement) {
  $("helping").textContent = viewers(statement.helping_now);
  figure($("pending"), money(statement.pending_micro));
  figure($("available"), money(statement.available_micro));
  figure($("in-flight"), money(statement.in_flight_micro));
  figure($("paid"), money(statement.paid_micro));
  $("as-of").textContent = WHEN.format(Date.now());
  showEstimate(statement.estimate);
}

/** Beside the amounts and never in them: nobody owes it yet. */
function showEstimate(estimate) {
  $("estimate").hidden = !estimate?.credited_bytes;
  if ($("estimate").hidden) return;
  $("estimate-bytes").textContent = bytes(estimate.credited_bytes);
  $("estimate-amount").textContent = `${money(estimate.amount_micro)} ${$("unit").textContent}`;
  $("estimate-ends").textContent = TIME.format(estimate.ends_us / 1000);
}

function unseen(lines) {
  return lines.filter((line) => {
    const place = `${line.position}:${line.line}`;
    return !shown.has(place) && shown.add(place);
  });
}

function showMore(statement) {
  $("lines").append(...unseen(statement.lines).map(row));
  setEmpty();
  $("more").hidden = !statement.next;
  $("more").onclick = async () => showMore(await load(statement.next));
}

function setEmpty() {
  const empty = $("lines").childElementCount === 0;
  $("empty").hidden = !empty;
  $("lines").parentElement.hidden = empty;
}

function showNodes(nodes) {
  $("nodes").hidden = nodes.length === 0;
  $("node-list").replaceChildren(
    ...nodes.map((node) => {
      const li = document.createElement("li");
      li.append(named(node.name || "your node"), cell("span", node.state_reason ? `${node.state}: ${node.state_reason}` : `${node.state}, health ${Math.floor(node.health / 10)} %`, "quiet"));
      return li;
    }),
  );
}

async function open(given) {
  token = given;
  const statement = await load();
  $("login").hidden = true;
  $("statement").hidden = false;
  $("name").replaceChildren("Thank you, ", named(statement.name));
  $("unit").textContent = statement.unit;
  show(statement);
  shown.clear();
  $("lines").replaceChildren();
  showMore(statement);
  live = follow("/api/friends/me/events", { token, onEvent: (news) => void hear(news) });
  setInterval(() => live.connected || void poll(), POLL_MS);
}

async function hear(news) {
  heard(true);
  show(news);
  showNodes(news.nodes);
  const fresh = unseen(news.reload ? (await load()).lines : news.lines);
  $("lines").prepend(...fresh.map(row));
  setEmpty();
}

/** While there is no live connection: a proxy may hold it up, or the hub have too many. */
async function poll() {
  const statement = await load().catch(() => null);
  heard(statement !== null);
  if (statement === null) return;
  show(statement);
  $("lines").prepend(...unseen(statement.lines).map(row));
  setEmpty();
}

door("friend", open);
