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

  // A browser opens six connections to a site, and a stream keeps one, even that of a page
  // that was left, because one may go back to it. So a page has one while somebody sees it.
  let stream;
  htmx.createEventSource = (url) => {
    const s = stream = new EventTarget();
    let source;
    s.open = () => {
      source = new EventSource(url);
      source.onopen = (e) => s.onopen(e);
      source.onerror = (e) => s.onerror(e);
      for (const name of ["update", "trouble"]) {
        source.addEventListener(name, (e) => s.dispatchEvent(new MessageEvent(name, { data: e.data })));
      }
    };
    s.close = () => source?.close();
    Object.defineProperty(s, "readyState", { get: () => source.readyState });
    if (document.hidden) s.left = true; else s.open();
    return s;
  };
  const leave = () => {
    if (!stream || stream.left) return;
    stream.left = true;
    stream.close();
    say("Paused while hidden");
  };
  const back = () => {
    if (!stream?.left) return;
    stream.left = false;
    say("Connecting");
    stream.open();
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? leave : back)());
  addEventListener("pagehide", leave);
  addEventListener("pageshow", back);
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
