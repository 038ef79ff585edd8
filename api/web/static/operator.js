// The operator's page: whether the hub keeps up, how the nodes are, and which payouts are on their way.

import { door } from "/static/door.js";
import { $, WHEN, ask, bytes, cell, grouped, money, named } from "/static/figures.js";

const POLL_MS = 5_000;

async function open(token) {
  await load(token);
  $("login").hidden = true;
  $("inside").hidden = false;
  const again = async () => {
    await load(token).catch((error) => verdict(false, error.status ? `refusing: ${error.message}` : "not answering: what follows is what it said last"));
    setTimeout(again, POLL_MS);
  };
  setTimeout(again, POLL_MS);
}

async function load(token) {
  const [status, ready, { nodes }, { payouts, unit }] = await Promise.all([
    ask("/api/status", token),
    fetch("/api/ready").then((response) => response.json()), // says what is wrong with 503
    ask("/api/nodes", token),
    ask("/api/payouts", token),
  ]);
  const wrong = Object.values(ready.checks).filter((said) => said !== "ok").length;
  verdict(ready.ready === true, ready.ready === true ? (wrong ? "ready, but not all is well" : "well") : "not ready");
  $("checks").replaceChildren(...Object.entries(ready.checks).map(([name, said]) => item(name, said, said === "ok")));
  $("log-events").textContent = grouped(status.log_events);
  $("lags").replaceChildren(
    ...status.projections.map((lag) =>
      row(lag.stopped ? [lag.name, `stopped: ${lag.stopped}`] : [lag.name], grouped(lag.events), lag.events ? grouped(Math.ceil(lag.behind_us / 1e6)) : 0)),
  );
  $("duties").replaceChildren(
    ...status.duties.map((duty) => {
      const said = duty.failing ? "failing: see the hub's log" : duty.overdue_s ? `silent for ${duty.overdue_s} s` : "ok";
      return item(duty.name, said, said === "ok");
    }),
  );
  table("node", nodes, (node) =>
    row([node.name, node.state_reason ? `${node.state}: ${node.state_reason}` : node.state], `${Math.floor(node.health / 10)} %`, node.viewers, bytes(node.credited_bytes) || "–"));
  table("payout", payouts, (payout) => {
    const by = [payout.planned_by && `planned by ${payout.planned_by}`, payout.decided_by && `approved by ${payout.decided_by}`];
    const back = payout.returned_micro && `${money(payout.returned_micro)} came back`;
    const what = [`${payout.state}, ${payout.rail}, ${payout.line_count} ${payout.line_count === 1 ? "line" : "lines"}`, ...by, back];
    const when = WHEN.format(payout.planned_us / 1000);
    const named = [`${payout.number}, of ${when}`, what.filter(Boolean).join(", ")];
    const tr = row(named, money(payout.total_micro), money(payout.confirmed_micro));
    if (payout.next) tr.firstChild.append(next(`streamrp2p payout ${payout.next} ${payout.number}`));
    return tr;
  });
  $("unit").textContent = unit;
}

function verdict(good, said) {
  if ($("verdict").textContent !== said) $("verdict").textContent = said; // a screen reader says it once
  $("verdict").className = good ? "" : "bad";
}

function item(name, said, good) {
  const li = document.createElement("li");
  li.append(cell("span", name), cell("span", said, good ? "quiet" : "bad"));
  return li;
}

function row([first, below], ...figures) {
  const tr = document.createElement("tr");
  const td = document.createElement("td");
  td.append(named(first));
  if (below) td.append(cell("small", below));
  tr.append(td, ...figures.map((figure) => cell("td", figure, "number")));
  return tr;
}

function next(command) {
  const small = cell("small", "next: ");
  small.append(cell("code", command));
  return small;
}

function table(name, things, of) {
  $(`no-${name}s`).hidden = things.length > 0;
  $(`${name}-table`).hidden = things.length === 0;
  $(`${name}s`).replaceChildren(...things.map(of));
}

door("operator", open);
