// The way into a page behind a token: typed, or after the # of the address. It stays in this tab, and is sent on purpose.

import { $ } from "/static/figures.js";

const REFUSED = { // the API's own words for these are for programs
  401: () => "This token opens nothing. Is all of it here, and is it the newest? Who lost it asks the operator for another link.",
  403: (role) => `This token is for another page. Here it takes the one that begins with sp2p_${role}_.`,
};

/** What had the focus is hidden behind the door now. */
function focusTitle() {
  const title = document.querySelector("h1");
  title.tabIndex = -1;
  title.focus();
}

/** `open(token)` shows what is behind the door, or throws what to say at it. */
export function door(role, open) {
  const stored = `streamrp2p.${role}-token`;

  async function enter(token) {
    const typed = $("login").contains(document.activeElement);
    try {
      await open(token);
      sessionStorage.setItem(stored, token);
      if (typed) focusTitle();
    } catch (error) {
      $("message").textContent = REFUSED[error.status]?.(role) ?? error.message;
      $("message").className = "bad";
      $("token").setAttribute("aria-invalid", "true");
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
