// What htmx does not do: relative times, copy buttons, the state of the connection, and
// the way back after a log-in. Pages work without it.
"use strict";

(() => {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

  const span = (seconds) => {
    const i = units.findIndex(([, size]) => seconds >= size);
    if (i < 0) return "0 s";
    const [unit, size] = units[i];
    const rest = i < 2 ? Math.floor((seconds % size) / units[i + 1][1]) : 0;
    return `${Math.floor(seconds / size)} ${unit}` + (rest ? ` ${rest} ${units[i + 1][0]}` : "");
  };

  // Each time is shown relative to now; the title has the exact one.
  const relate = () => {
    const now = Date.now();
    for (const t of document.querySelectorAll("time[datetime]")) {
      const seconds = (now - Date.parse(t.dateTime)) / 1000;
      const text = seconds >= 0 ? `${span(seconds)} ago` : `in ${span(-seconds)}`;
      if (t.textContent !== text) t.textContent = text;
    }
  };

  relate();
  setInterval(relate, 1000);
  document.addEventListener("htmx:afterSwap", relate);
  document.addEventListener("htmx:sseMessage", relate);

  document.addEventListener("click", async (e) => {
    const button = e.target.closest("[data-copy]");
    if (!button) return;
    const source = button.dataset.copy ? button.dataset.copy : document.getElementById(button.dataset.copyFrom)?.textContent;
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(source ?? "");
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl-C";
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  });

  const say = (text) => {
    const state = document.getElementById("connection");
    if (state) state.textContent = text;
  };
  document.addEventListener("htmx:sseOpen", () => say("Live"));
  document.addEventListener("htmx:sseError", () => say("Connection lost, retrying"));

  // A link from elsewhere arrives without the session, which is sent within the site only.
  const login = document.querySelector("form[data-next]");
  if (login && !login.dataset.failed) {
    fetch(login.dataset.next, { method: "HEAD", redirect: "manual", headers: { Accept: "text/html" } })
      .then((r) => { if (r.ok) location.replace(login.dataset.next); })
      .catch(() => {});
  }
})();
