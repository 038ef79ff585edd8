// How the pages write amounts, sizes and times.

export const $ = (id) => document.getElementById(id);

/** Exact: micro-units are whole numbers, and are never divided as floats. Long ones in groups of three. */
export function money(micro) {
  const sign = micro < 0 ? "−" : "";
  const digits = String(Math.abs(micro)).padStart(7, "0");
  const fraction = digits.slice(-6).replace(/0{1,4}$/, "");
  return `${sign}${grouped(digits.slice(0, -6))}.${fraction}`;
}

/** Whole numbers, in groups of three, between which a narrow column may break them. */
export function grouped(number) {
  const digits = String(number);
  return digits.length > 4 ? digits.replace(/\B(?=(\d{3})+$)/g, "\u2009") : digits;
}

/** An amount, or another figure, in a panel: what is long gets more room. */
export function figure(element, text) {
  element.textContent = text;
  element.classList.toggle("long", String(text).length > 11);
}

export function bytes(count) {
  if (!count) return "";
  const [whole, part] = (count < 1e9 ? (count / 1e6).toFixed(1) : (count / 1e9).toFixed(2)).split(".");
  return `${grouped(whole)}.${part}\u00a0${count < 1e9 ? "MB" : "GB"}`;
}

export const WHEN = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export const TIME = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });

export function viewers(count) {
  return count === 1 ? "1 viewer" : `${count} viewers`;
}

export function cell(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

/** A name that people gave: written from right to left, or with marks that turn what follows, it stays by itself. */
export function named(name) {
  return cell("bdi", name);
}

/** Says that the figures of the page are old, or no longer. */
export function heard(answered) {
  if ($("away").hidden !== answered) $("away").hidden = answered;
}

/** The answer of the API, or an Error with what the hub says is wrong. */
export async function ask(path, token, options = {}) {
  const headers = { Authorization: `Bearer ${token}`, ...options.headers };
  const response = await fetch(path, { ...options, headers }).catch(() => {
    throw new Error("The hub does not answer. Try again in a moment."); // the browser's own words differ, and say less
  });
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw Object.assign(new Error(problem.detail ?? `HTTP ${response.status}`), { status: response.status });
  }
  return response.json();
}
