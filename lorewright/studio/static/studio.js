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
  begin(element);
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

// -- sliders: one request at a time while they move -------------------

const sliding = new WeakMap();

async function slide(form) {
  const state = sliding.get(form) || { busy: false, again: false };
  sliding.set(form, state);
  if (state.busy) { state.again = true; return; }
  state.busy = true;
  const place = document.getElementById(form.dataset.sliding);
  try {
    do {
      state.again = false;
      const response = await fragment(`${form.getAttribute("action")}?${new URLSearchParams(new FormData(form))}`);
      place.innerHTML = await response.text();
      begin(place);
    } while (state.again);
  } catch (error) {
    place.innerHTML = '<div class="error" role="alert"><p>The studio does not answer.</p></div>';
  } finally {
    state.busy = false;
  }
}

// -- arrows: a tip is a slider; what is a sum of arrows moves with it, the rest is requested ------

const HALF = 220, STEP = 0.05;

function board(svg) {
  const about = JSON.parse(svg.dataset.about);
  const free = svg.dataset.arrows === "sketch";
  const tips = [...svg.querySelectorAll("[data-tip]")];
  const field = (n) => free ? null : document.querySelector(`[data-factor="${CSS.escape(about.names[n])}"]`);
  const at = (n) => free ? about.vectors[n] : about.at[n].map((each) => each * about.weights[n]);
  const place = (v) => [HALF + about.unit * v[0], HALF - about.unit * v[1]];

  function draw() {
    tips.forEach((tip, n) => {
      const [x, y] = place(at(n)), group = tip.parentElement;
      tip.setAttribute("cx", x); tip.setAttribute("cy", y);
      group.querySelector("line").setAttribute("x2", x);
      group.querySelector("line").setAttribute("y2", y);
      group.querySelector("text").setAttribute("x", x + 14);
      group.querySelector("text").setAttribute("y", y - 10);
      const value = free ? about.vectors[n].join(", ") : String(about.weights[n]);
      tip.setAttribute("aria-valuetext", value);
      tip.setAttribute("aria-valuenow", free ? about.vectors[n][0] : about.weights[n]);
    });
    for (const [method, divided] of Object.entries(about.linear)) land(method, sum(divided));
  }

  function sum(divided) {
    const factors = about.weights.map((each) => divided ? each / about.weights.length : each);
    const arrows = free ? about.vectors : about.at;
    return [0, 1].map((i) => arrows.reduce((total, v, n) => total + factors[n] * v[i], 0));
  }

  function land(method, v) {
    const mark = svg.querySelector(`[data-landing="${method}"]`);
    if (!mark) return;
    about.landings[method] = v;
    mark.setAttribute("transform", `translate(${place(v).join(" ")})`);
    mark.classList.remove("waiting");
    const cell = document.querySelector(`tr[data-at="${method}"] td`);
    if (cell) cell.textContent = v.map((each) => each.toFixed(3)).join(", ");
  }

  function set(n, value, settled) {
    if (free) {
      about.vectors[n] = value;
      for (const [i, key] of ["x", "y"].entries()) document.querySelector(`[data-${key}="${n}"]`).value = value[i];
    } else {
      about.weights[n] = value;
      if (field(n)) field(n).value = value;
    }
    draw();
    for (const mark of svg.querySelectorAll("[data-landing]")) {
      if (!(mark.dataset.landing in about.linear)) mark.classList.add("waiting");
    }
    if (settled) ask();
  }

  const rounded = (each) => Math.round(each / STEP) * STEP;
  const tidy = (each) => Number(rounded(each).toFixed(2)) || 0;

  function moved(n, event) {
    const box = svg.getBoundingClientRect(), scale = 2 * HALF / box.width;
    const v = [(event.clientX - box.left) * scale - HALF, HALF - (event.clientY - box.top) * scale]
      .map((each) => each / about.unit);
    if (free) return v.map(tidy);
    const d = about.at[n];
    return tidy((v[0] * d[0] + v[1] * d[1]) / Math.max(d[0] * d[0] + d[1] * d[1], 1e-12));
  }

  let asking = false, again = false;
  async function ask() {
    if (asking) { again = true; return; }
    asking = true;
    try { await request(); } finally { asking = false; }
  }

  async function request() {
    do {
      again = false;
      const query = free
        ? { vectors: about.vectors.map((v) => v.join(",")).join(" "), weights: about.weights.join(",") }
        : { names: about.names.join(","), weights: about.weights.join(",") };
      const path = free ? "/merge/sketch.json" : "/merge/plane.json";
      const response = await fetch(`${path}?${new URLSearchParams(query)}`, { credentials: "same-origin" });
      if (!response.ok) break;
      const record = await response.json();
      const landings = free ? record.sketch.points : Object.fromEntries(record.plane.landings.map((each) => [each.method, each.at]));
      if (!again) for (const [method, v] of Object.entries(landings)) land(method, v);
    } while (again);
  }

  tips.forEach((tip, n) => {
    tip.addEventListener("pointerdown", (event) => { tip.setPointerCapture(event.pointerId); event.preventDefault(); tip.focus(); });
    tip.addEventListener("pointermove", (event) => { if (tip.hasPointerCapture(event.pointerId)) set(n, moved(n, event), false); });
    tip.addEventListener("pointerup", (event) => { tip.releasePointerCapture(event.pointerId); ask(); });
    tip.addEventListener("keydown", (event) => {
      const by = { ArrowRight: [STEP, 0], ArrowLeft: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] }[event.key];
      if (!by) return;
      event.preventDefault();
      set(n, free ? about.vectors[n].map((each, i) => tidy(each + by[i])) : tidy(about.weights[n] + by[0] + by[1]), true);
    });
  });
  const listen = (input, change) => input && input.addEventListener("input", () => {
    if (!svg.isConnected || !Number.isFinite(input.valueAsNumber)) return;
    change(input.valueAsNumber);
    draw();
    ask();
  });
  about.weights.forEach((_, n) => {
    if (free) {
      listen(document.querySelector(`[data-x="${n}"]`), (value) => { about.vectors[n][0] = value; });
      listen(document.querySelector(`[data-y="${n}"]`), (value) => { about.vectors[n][1] = value; });
      listen(document.querySelector(`[data-weight="${n}"]`), (value) => { about.weights[n] = value; });
    } else listen(field(n), (value) => { about.weights[n] = value; });
  });
  draw();
}

function redraw(form) {
  const names = [...form.querySelectorAll("[data-take]:checked")].map((each) => each.dataset.take);
  const place = form.querySelector("[data-plane]");
  if (names.length < 2) { place.innerHTML = "<p><em>Choose two memories at least.</em></p>"; return; }
  const weights = names.map((name) => form.querySelector(`[data-factor="${CSS.escape(name)}"]`).value || "1");
  const query = new URLSearchParams({ names: names.join(","), weights: weights.join(",") });
  load(place, "inner products of the weight changes, and a merge by each method", () => fragment(`/merge/plane?${query}`));
}

// -- a page begins -------------------------------------------------------------------------------

function begin(root) {
  for (const each of root.querySelectorAll("[data-load]")) {
    const address = each.dataset.load;
    delete each.dataset.load;
    load(each, each.dataset.awaits, () => fragment(address));
  }
  root.querySelectorAll("[data-arrows]").forEach(board);
}

function complain(input, text) {
  const place = document.getElementById(input.getAttribute("aria-describedby"));
  place.textContent = text;
  place.hidden = !text;
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
  const form = event.target.closest("form[data-sliding]");
  if (form) {
    const shown = event.target.parentElement.querySelector("output");
    if (shown && event.target.type === "range") shown.textContent = event.target.value;
    slide(form);
    return;
  }
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
  if (input.dataset.take) { redraw(input.form); return; }
  if (!input.dataset.text || !input.files.length) return;
  const [file] = input.files, form = input.form;
  const most = Number(input.dataset.most), small = file.size <= most;
  const text = small ? await file.text() : "";
  const strange = /[\0\uFFFD]/.test(text), wrong = !small || strange;
  const why = small
    ? `${file.name} is no text in UTF-8; save it as one, or use the command lore write.`
    : `${file.name} has ${file.size.toLocaleString("en")} bytes, of which ${most.toLocaleString("en")} can be sent; use the command lore write.`;
  complain(input, wrong ? why : "");
  if (wrong) { input.value = ""; return; }
  form.elements[input.dataset.text].value = text;
  if (!form.elements.suffix) return;
  const suffix = file.name.slice(file.name.lastIndexOf(".")).toLowerCase();
  if ([...form.elements.suffix.options].some((each) => each.value === suffix)) form.elements.suffix.value = suffix;
  if (form.elements.name && !form.elements.name.value) form.elements.name.value = file.name.replace(/\.[^.]*$/, "");
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
