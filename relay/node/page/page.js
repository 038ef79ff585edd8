// Shows /status.json, anew every two seconds while the page is looked at.
const EVERY_MS = 2000;
const SHOWN = 10;

const show = (id, text) => { document.getElementById(id).textContent = text; };
const many = (count, one) => `${count.toLocaleString()} ${one}${count === 1 ? "" : "s"}`;

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (count >= 1000 && at < units.length - 1) { count /= 1000; at += 1; }
  return `${at ? count.toFixed(count < 10 ? 2 : 1) : count}\u00a0${units[at]}`;
}

// Money is shown to the last micro-unit, from integers only.
function money(micro) {
  const amount = BigInt(micro);
  const size = amount < 0n ? -amount : amount;
  return `${amount < 0n ? "-" : ""}${size / 1000000n}.${String(size % 1000000n).padStart(6, "0")}`;
}

function line(answer) {
  const item = document.createElement("li");
  const what = document.createElement("span");
  const when = document.createElement("span");
  what.textContent = answer.verdict.replaceAll("_", " ") + (answer.cap ? ` (${answer.cap.replaceAll("_", " ")})` : "") +
    (answer.units ? `: ${many(answer.units, "segment")}, ${bytes(answer.bytes)}` : "");
  when.textContent = new Date(answer.at_s * 1000).toLocaleTimeString();
  item.append(what, when);
  return item;
}

function problemOf(status) {
  const said = [status.hub.error, status.port.problem];
  const standing = status.hub.node_status;
  if (standing === "suspended" || standing === "retired") {
    said.unshift(`The hub gives this node no viewers: it is ${standing} (${status.hub.reason || "no reason was given"}). Ask the operator.`);
  }
  if (status.hub.clock_ahead_s) {
    said.push(`This computer's clock and the hub's are ${Math.round(Math.abs(status.hub.clock_ahead_s) / 60)} minutes apart: one of ` +
      "the two is wrong. It costs you nothing; is automatic time on?");
  }
  return said.filter(Boolean).join(" · ");
}

function render(status) {
  show("name", status.name);
  document.title = `${status.viewers} · ${status.name}`;
  show("hub", `carrying for ${status.hub.url}`);
  show("viewers", status.viewers.toLocaleString());
  show("viewers-what", status.viewers === 1 ? "viewer helped now" : "viewers helped now");
  show("uploaded", bytes(status.traffic.uploaded_bytes));
  show("segments", status.traffic.segments.toLocaleString());
  show("credited", `${many(status.receipts.units, "segment")}, ${bytes(status.receipts.credited_bytes)}`);
  show("waiting", status.receipts.waiting.toLocaleString());
  const earned = status.earned;
  for (const state of ["pending", "available", "in_flight", "paid"]) {
    show(state.replace("_", "-"), earned ? `${money(earned[`${state}_micro`])} ${earned.unit}` : "–");
  }
  show("estimate", earned?.estimate_micro == null ? "–" : `${money(earned.estimate_micro)} ${earned.unit}`);
  show("port", status.port.public + (status.port.opened_by ? ` (${status.port.opened_by})` : ""));
  const recent = status.receipts.recent.slice(-SHOWN).reverse();
  document.getElementById("none").hidden = recent.length > 0;
  document.getElementById("recent").replaceChildren(...recent.map(line));
  complain(problemOf(status));
}

function complain(text) {
  const problem = document.getElementById("problem");
  if (problem.textContent === text) return; // a screen reader says it once
  problem.textContent = text;
  problem.hidden = !text;
}

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    render(await answer.json());
  } catch {
    complain("The node does not answer: it is not running any more. Start it with: streamrp2p node run");
  }
}

refresh();
setInterval(refresh, EVERY_MS);
document.addEventListener("visibilitychange", refresh);
