// The way into a page behind a token: typed, or after the # of the address. It stays in this tab, and is sent on purpose.

import { $ } from "/static/figures.js";

const REFUSED = { // the API's own words for these are for programs
  401: () => "This token opens nothing. Is all of it here, and is it the newest?",
  403: (role) => `This token is for another page. Here it takes the one that begins with sp2p_${role}_.`,
};

/** `open(token)` shows what is behind the door, or throws what to say at it. */
export function door(role, open) {
  const stored = `streamrp2p.${role}-token`;

  async function enter(token) {
    try {
      await open(token);
      sessionStorage.setItem(stored, token);
    } catch (error) {
      $("message").textContent = REFUSED[error.status]?.(role) ?? error.message;
    }
  }

  $("login").addEventListener("submit", (event) => {
    event.preventDefault();
    void enter($("token").value.trim());
  });
  $("leave").addEventListener("click", () => {
    sessionStorage.removeItem(stored);
    location.reload();
  });
  const token = location.hash.slice(1) || sessionStorage.getItem(stored);
  if (location.hash) history.replaceState(null, "", location.pathname); // not into screenshots or shared links
  if (token) void enter(token);
}
