// Why a line of the statement has its amount, as the hub derives it from the log; and the word that it is wrong.

import { ask, bytes, cell, money } from "/static/figures.js";

const EXPLAINED = new Set(["earned", "released", "payout_reserved", "payout_confirmed", "payout_failed"]);
const PLACES_MAX = 6;
const part = new Intl.NumberFormat(undefined, { style: "percent", maximumSignificantDigits: 3 });

/** A button for a line, which opens and closes a row with its derivation below the line's own; null where there is none. */
export function whyButton(line, token) {
  if (!EXPLAINED.has(line.kind)) return null;
  const button = cell("button", "Why?", "why");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-label", `Why? Line ${line.position}:${line.line}`); // to the ear all of them are alike
  let opened = null;
  button.onclick = async () => {
    button.setAttribute("aria-expanded", String(!opened));
    if (opened) {
      opened.remove();
      opened = null;
      return;
    }
    opened = document.createElement("tr");
    const text = document.createElement("td");
    text.colSpan = 3;
    opened.append(text);
    button.closest("tr").after(opened);
    try {
      text.append(...told(await ask(`/api/friends/me/explain/${line.position}/${line.line}`, token)));
      if (line.kind === "earned") text.append(disputing(line, token));
    } catch (error) {
      text.append(cell("p", error.message, "quiet"));
    }
  };
  return button;
}

function told(made) {
  const place = `${made.position}:${made.line}`;
  const check = cell("p", "Derive it on your own computer: ", "quiet");
  check.append(cell("code", `streamrp2p explain ${place} --from ${location.origin}/log`));
  return [sums(made.kind === "earned" ? earned(made) : moved(made)), ...places(made), check];
}

function earned({ steps, tariff, reason, amount_micro: amount }) {
  if (!tariff.version) return [["No price was set for this stream", money(0)]];
  const rows = [[`All that arrived of this stream, at ${money(tariff.rate_micro_per_gb)} a GB`, money(steps.priced_micro)]];
  if (steps.scaled_to_budget) rows.push(["The budget had no more than", money(steps.gross_micro)]);
  rows.push([`The hub's fee, ${tariff.fee_bp / 100} %`, money(-steps.fee_bp_of_gross_micro)]);
  const floor = `in equal parts to ${steps.nodes === 1 ? "the one node" : `the ${steps.nodes} nodes`} that served`;
  if (reason === "floor_share") {
    rows.push([`Of the rest ${tariff.floor_bp / 100} % go ${floor}`, money(steps.floor_pool_micro)]);
  } else {
    rows.push([`Floor share, ${tariff.floor_bp / 100} %: goes ${floor}`, money(-steps.floor_pool_micro)]);
    const weighed = reason.startsWith("plain") ? `, weighed at ${tariff.plain_bp / 100} %` : "";
    rows.push([`Left for what each delivered${weighed}`, money(steps.rest_micro)]);
    rows.push([`Your part of that: ${part.format(steps.stream_weight ? steps.weight / steps.stream_weight : 0)}`, money(steps.uncapped_micro)]);
    if (amount < steps.uncapped_micro) {
      rows.push([`Players that do not sign bring at most ${tariff.plain_income_cap_bp / 100} % of what your node earns`, money(steps.plain_most_micro ?? 0)]);
    }
  }
  return [...rows, ["This line", money(amount)]];
}

function moved({ parts, amount_micro: amount }) {
  const rows = parts.slice(0, PLACES_MAX).map((one) => [`Line ${one.position}:${one.line}`, money(one.amount_micro)]);
  if (parts.length > rows.length) rows.push([`and ${parts.length - rows.length} more`, ""]);
  return [...rows, ["This line", money(amount)]];
}

function sums(rows) {
  const list = document.createElement("dl");
  list.className = "sums";
  for (const [what, amount] of rows) list.append(cell("dt", what), cell("dd", amount));
  return list;
}

/** Where the receipts stand in the log. */
function places({ receipts, spot_checks: checks }) {
  const found = [];
  if (receipts?.length) {
    const named = receipts.slice(0, PLACES_MAX).map((one) => one.position).join(", ");
    const more = receipts.length > PLACES_MAX ? ", …" : "";
    found.push(cell("p", `Receipts: ${receipts.length}, in the log at ${named}${more}.`, "quiet"));
  }
  if (checks?.length) {
    const size = checks.reduce((sum, one) => sum + one.credited_bytes, 0);
    found.push(cell("p", `Left out: ${bytes(size)} to the hub's own spot checks.`, "quiet"));
  }
  return found;
}

function disputing(line, token) {
  const form = document.createElement("form");
  const label = cell("label", "Something is wrong? Say what, and the line waits for the operator's decision");
  const row = cell("div", "", "row");
  const input = document.createElement("input");
  input.id = `wrong-${line.position}-${line.line}`;
  label.htmlFor = input.id;
  // It goes into the log, which cannot forget.
  Object.assign(input, { required: true, maxLength: 100, pattern: "[ -~]+", title: "Latin letters without accents, digits and signs", placeholder: "A word or two, for the public log" });
  const button = cell("button", "Dispute");
  const said = cell("p", "", "quiet");
  said.setAttribute("role", "status");
  row.append(input, button);
  form.append(label, row, said);
  form.onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const body = JSON.stringify({ position: line.position, line: line.line, reason: input.value });
      const headers = { "Content-Type": "application/json" };
      const { dispute } = await ask("/api/friends/me/disputes", token, { method: "POST", headers, body });
      row.hidden = true;
      said.textContent = `Dispute ${dispute} is open: this line waits for the decision, the others go on as usual.`;
    } catch (error) {
      button.disabled = false;
      said.textContent = error.message;
    }
  };
  return form;
}
