// The friend's page: the statement behind their token. The token stays in this tab.

const STORED = "streamrp2p.friend-token";
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

const $ = (id) => document.getElementById(id);
let token = location.hash.slice(1) || sessionStorage.getItem(STORED) || "";
let timer = null;

/** Exact: micro-units are whole numbers, and are never divided as floats. */
function money(micro) {
  const sign = micro < 0 ? "−" : "";
  const digits = String(Math.abs(micro)).padStart(7, "0");
  const fraction = digits.slice(-6).replace(/0{1,4}$/, "");
  return `${sign}${digits.slice(0, -6)}.${fraction}`;
}

function bytes(count) {
  if (!count) return "";
  return count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(2)} GB`;
}

const WHEN = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function row(line) {
  const why = cell("td", WHY[line.reason] ?? line.reason);
  why.append(cell("time", WHEN.format(line.at_us / 1000)));
  const tr = document.createElement("tr");
  tr.title = `log position ${line.position}`;
  tr.append(why, cell("td", bytes(line.credited_bytes), "number"), cell("td", money(line.amount_micro), "number"));
  return tr;
}

function cell(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

async function load(before) {
  const url = new URL("/api/friends/me/statement", location.origin);
  if (before) url.searchParams.set("before", before);
  const response = await fetch(url, { headers: { Authorization: `Bearer ${token}` } });
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Error(problem.detail ?? `HTTP ${response.status}`);
  }
  return response.json();
}

function show(statement) {
  $("login").hidden = true;
  $("statement").hidden = false;
  $("name").textContent = `Thank you, ${statement.name}`;
  $("helping").textContent = statement.helping_now === 1 ? "1 viewer" : `${statement.helping_now} viewers`;
  $("pending").textContent = money(statement.pending_micro);
  $("available").textContent = money(statement.available_micro);
  $("paid").textContent = money(statement.paid_micro);
  $("unit").textContent = statement.unit;
}

function showMore(statement) {
  $("lines").append(...statement.lines.map(row));
  const empty = $("lines").childElementCount === 0;
  $("empty").hidden = !empty;
  $("lines").parentElement.hidden = empty;
  $("more").hidden = !statement.next;
  $("more").onclick = async () => showMore(await load(statement.next));
}

async function refresh(first) {
  clearTimeout(timer);
  try {
    const statement = await load();
    sessionStorage.setItem(STORED, token);
    show(statement);
    if (first) {
      $("lines").replaceChildren();
      showMore(statement);
    }
  } catch (error) {
    if (first) {
      $("message").textContent = error.message;
      return;
    }
  }
  timer = setTimeout(() => void refresh(false), POLL_MS);
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  void refresh(true);
});
$("leave").addEventListener("click", () => {
  sessionStorage.removeItem(STORED);
  location.reload();
});
if (location.hash) history.replaceState(null, "", location.pathname); // not into screenshots or shared links
if (token) void refresh(true);
