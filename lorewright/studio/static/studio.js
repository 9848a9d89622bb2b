// What pages do beyond links and forms: follow what goes on, load what takes a while, keys.
"use strict";

const SPEAK_MS = 5000; // a screen reader is told at most so often
const STALE_MS = 2000;

// -- live regions: pieces of HTML by id, as server-sent events ---------------------------------

function follow(region) {
  const events = new EventSource(region.dataset.live);
  const stale = document.getElementById("stale");
  let last = new Date(), waiting = 0;
  events.onmessage = (event) => {
    clearTimeout(waiting);
    waiting = 0;
    last = new Date();
    stale.hidden = true;
    for (const [id, html] of Object.entries(JSON.parse(event.data))) {
      if (id === "spoken") say(html);
      else fill(document.getElementById(id), html);
    }
  };
  events.onopen = () => { clearTimeout(waiting); waiting = 0; stale.hidden = true; };
  events.onerror = () => {
    waiting = waiting || setTimeout(() => {
      stale.querySelector("time").textContent = last.toLocaleTimeString();
      stale.hidden = false;
    }, STALE_MS);
  };
  window.addEventListener("pagehide", () => events.close());
}

function fill(element, html) {
  if (!element) return;
  const focused = element.contains(document.activeElement) && document.activeElement;
  const mark = focused && (focused.id || focused.getAttribute("href") || focused.textContent);
  element.innerHTML = html;
  if (!mark) return;
  for (const each of element.querySelectorAll("a, button, input, [tabindex]")) {
    if ([each.id, each.getAttribute("href"), each.textContent].includes(mark)) { each.focus(); return; }
  }
}

let spokenAt = 0, pending = 0;

function say(text) {
  clearTimeout(pending);
  const wait = Math.max(0, spokenAt + SPEAK_MS - Date.now());
  pending = setTimeout(() => {
    spokenAt = Date.now();
    document.getElementById("spoken").textContent = text;
  }, wait);
}

// -- what takes a while: a skeleton, then the piece, or the error and a retry -------------------

async function load(place, awaited, request) {
  place.innerHTML = "";
  place.setAttribute("aria-busy", "true");
  const skeleton = document.createElement("p");
  skeleton.className = "skeleton";
  skeleton.textContent = `Awaiting: ${awaited}.`;
  place.append(skeleton);
  say(skeleton.textContent);
  let html;
  try {
    const response = await request();
    html = await response.text();
    place.innerHTML = html;
    if (!response.ok) retry(place, awaited, request);
    else say("Done.");
  } catch (error) {
    place.innerHTML = '<div class="error" role="alert"><p>The studio does not answer.</p></div>';
    retry(place, awaited, request);
  }
  place.removeAttribute("aria-busy");
  begin(place);
}

function retry(place, awaited, request) {
  const button = document.createElement("button");
  button.textContent = "Try again";
  button.addEventListener("click", () => load(place, awaited, request));
  place.append(button);
}

const fragment = (address, options = {}) =>
  fetch(address, { ...options, headers: { "x-fragment": "1" }, credentials: "same-origin" });

function submit(event) {
  const form = event.target;
  const place = document.getElementById(form.dataset.into || "");
  if (!place) return;
  event.preventDefault();
  const fields = new FormData(form);
  for (const each of form.querySelectorAll("[data-without-script]")) fields.delete(each.name);
  const body = new URLSearchParams(fields);
  const buttons = form.querySelectorAll("button");
  const action = form.getAttribute("action");
  const post = form.getAttribute("method") === "post"; // a field may be called method
  const request = () => post
    ? fragment(action, { method: "post", body })
    : fragment(`${action}?${body}`);
  if ("address" in form.dataset) history.replaceState(null, "", `${action}?${body}`);
  buttons.forEach((each) => { each.disabled = true; });
  load(place, form.dataset.awaits, request).finally(() => buttons.forEach((each) => { each.disabled = false; }));
}

// -- token strips: one stop of the tab key, arrows inside ---------------------------------------

function step(strip, key) {
  const tokens = [...strip.children];
  const at = tokens.findIndex((each) => each.getAttribute("aria-selected") === "true");
  const to = { ArrowRight: at + 1, ArrowLeft: at < 0 ? 0 : at - 1, Home: 0, End: tokens.length - 1 }[key];
  choose(strip, tokens[Math.min(Math.max(to, 0), tokens.length - 1)]);
}

function choose(strip, token) {
  for (const each of strip.children) each.setAttribute("aria-selected", String(each === token));
  strip.setAttribute("aria-activedescendant", token.id);
  document.querySelector(`[data-strip-about="${strip.dataset.strip}"]`).textContent = token.dataset.about;
}

// -- a page begins -------------------------------------------------------------------------------

function begin(root) {
  for (const each of root.querySelectorAll("[data-load]")) {
    const address = each.dataset.load;
    delete each.dataset.load;
    load(each, each.dataset.awaits, () => fragment(address));
  }
}

document.addEventListener("submit", submit);
document.addEventListener("click", (event) => {
  const chip = event.target.closest("[data-question]");
  if (chip) {
    const form = document.getElementById("asking");
    form.elements.question.value = chip.dataset.question;
    if ("whichever" in chip.dataset) form.elements.memory.value = "";
    form.requestSubmit();
  }
  const token = event.target.closest(".token");
  if (token) choose(token.parentElement, token);
  if (event.target.closest("[data-help]")) document.getElementById("help").showModal();
});
document.addEventListener("input", (event) => {
  const slider = event.target.closest("[data-rows]");
  if (!slider) return;
  const rows = [...document.getElementById(slider.dataset.rows).rows];
  rows.forEach((row, n) => (n === Number(slider.value) ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current")));
  const row = rows[Number(slider.value)];
  slider.setAttribute("aria-valuetext", row.dataset.about);
  document.getElementById(slider.dataset.about).textContent = row.dataset.about;
});
document.addEventListener("change", async (event) => {
  const input = event.target;
  if (!input.dataset.text || !input.files.length) return;
  const [file] = input.files, form = input.form;
  form.elements[input.dataset.text].value = await file.text();
  const suffix = file.name.slice(file.name.lastIndexOf(".")).toLowerCase();
  if ([...form.elements.suffix.options].some((each) => each.value === suffix)) form.elements.suffix.value = suffix;
  if (!form.elements.name.value) form.elements.name.value = file.name.replace(/\.[^.]*$/, "");
});
document.addEventListener("keydown", (event) => {
  const strip = event.target.closest(".strip");
  if (strip && ["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) {
    event.preventDefault();
    step(strip, event.key);
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
  if (event.key === "/") {
    const field = document.querySelector("main input:not([type=hidden]), main textarea");
    if (field) { event.preventDefault(); field.focus(); }
  }
  if (event.key === "?") document.getElementById("help").showModal();
});
document.querySelectorAll("[data-live]").forEach(follow);
begin(document);
