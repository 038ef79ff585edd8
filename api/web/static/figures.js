// How the pages write amounts, sizes and times.

export const $ = (id) => document.getElementById(id);

/** Exact: micro-units are whole numbers, and are never divided as floats. */
export function money(micro) {
  const sign = micro < 0 ? "−" : "";
  const digits = String(Math.abs(micro)).padStart(7, "0");
  const fraction = digits.slice(-6).replace(/0{1,4}$/, "");
  return `${sign}${digits.slice(0, -6)}.${fraction}`;
}

export function bytes(count) {
  if (!count) return "";
  return count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(2)} GB`;
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

/** Says that the figures of the page are old, or no longer. */
export function heard(answered) {
  if ($("away").hidden !== answered) $("away").hidden = answered;
}

/** The answer of the API, or an Error with what the hub says is wrong. */
export async function ask(path, token, options = {}) {
  const headers = { Authorization: `Bearer ${token}`, ...options.headers };
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw Object.assign(new Error(problem.detail ?? `HTTP ${response.status}`), { status: response.status });
  }
  return response.json();
}
