"use strict";
/* Loading of data chunks, pieces of pages, and which page the address names.

   Text from a corpus or a person only ever becomes a text node or an attribute set by name. */

const wb = {
  data: {},
  waiting: {},
  put(name, value) {
    wb.data[name] = value;
    (wb.waiting[name] || []).forEach((done) => done(value));
    delete wb.waiting[name];
  },
  /* A chunk; its script is loaded when it is asked for first. */
  get(name) {
    if (name in wb.data) return Promise.resolve(wb.data[name]);
    return new Promise((done, fail) => {
      if (wb.waiting[name]) { wb.waiting[name].push(done); return; }
      wb.waiting[name] = [done];
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onerror = () => fail(new Error(`data/${name}.js is missing from this folder.`));
      document.head.append(script);
    });
  },
};

/* An element; strings among its children become text, null is left out. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null));
  return made;
}

const PICTURES = { "\n": "↵", "\t": "⇥", "\r": "␍", "\x7f": "␡", "\xa0": "⍽" };

/* Text in which nothing is invisible or reorders its surroundings. */
function visible(text) {
  return text.replace(/[\x00-\x1f\x7f\xa0]|[\p{Cf}\p{Cc}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0);
    if (PICTURES[character]) return PICTURES[character];
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    return `‹${code.toString(16).toUpperCase().padStart(4, "0")}›`;
  });
}

/* A token by itself, its outer spaces made visible. */
function chip(text, note) {
  const [, before, bare, after] = text.match(/^( *)([^]*?)( *)$/);
  const spaces = (run) => !run ? null : el("i", {}, run.length > 3 ? `␣×${run.length}` : "␣".repeat(run.length));
  return el("span", { class: "wb-chip" },
    el("code", {}, spaces(before), visible(bare), spaces(after)),
    note == null ? null : el("small", {}, note));
}

function number(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3) return value.toExponential(digits - 1);
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return value.toLocaleString("en-US", { minimumFractionDigits: Math.min(decimals, 20), maximumFractionDigits: Math.min(decimals, 20) });
}
const count = (value) => value.toLocaleString("en-US");
const percent = (share) => share == null ? "–" : `${number(share * 100)} %`;

/* 0.05 + 0.95 log10(1 + 9 r), as in the pages of the app. */
function opacity(activation, largest) {
  if (!(activation > 0 && largest > 0)) return 0;
  return 0.05 + 0.95 * Math.log10(1 + 9 * Math.min(activation / largest, 1));
}

/* A stored context as tokens with their activations. */
function unpacked([numbers, active, peak], texts) {
  const activations = new Array(numbers.length).fill(0);
  for (let i = 0; i < active.length; i += 2) activations[active[i]] = active[i + 1];
  return { tokens: numbers.map((n) => texts[n]), activations, peak };
}

function spans(context, start, stop, largest) {
  const made = [];
  for (let i = Math.max(0, start); i < Math.min(stop, context.tokens.length); i++) {
    const strength = opacity(context.activations[i], largest);
    const text = visible(context.tokens[i]);
    if (!strength) { made.push(text); continue; }
    const token = el("b", { class: strength > 0.75 ? "h" : null, "data-v": number(context.activations[i]) }, text);
    token.style.setProperty("--o", strength.toFixed(2));
    made.push(token);
  }
  return made;
}

function centered(context, largest, reach) {
  const at = context.peak;
  return el("div", { class: "wb-kwic" },
    el("span", { class: "l" }, el("span", {}, spans(context, at - reach, at, largest))),
    el("span", { class: "p" }, spans(context, at, at + 1, largest)),
    el("span", { class: "r" }, el("span", {}, spans(context, at + 1, at + 1 + reach, largest))));
}

/* What stands after # in the address: a page and its state. */
function address() {
  const [page, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { page: page || "features", query: new URLSearchParams(query || "") };
}

function to(page, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  return `#/${page}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
}

function changed(changes) {
  const { page, query } = address();
  for (const [name, value] of Object.entries(changes)) {
    if (value === "" || value == null) query.delete(name); else query.set(name, value);
  }
  return to(page, Object.fromEntries(query));
}

/* Light or dark: what was chosen, else what the system prefers. */
function theme() {
  return document.documentElement.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function head(title, crumbs) {
  const list = wb.data.list;
  const tab = (page, name) => el("a", { href: to(page), class: address().page === page ? "on" : null }, name);
  document.title = `${title} · SAE Workbench`;
  return el("header", {}, el("div", { class: "wb-head" },
    el("div", { class: "wb-crumb" }, crumbs),
    el("h1", {}, title),
    el("span", { class: "wb-muted wb-what" }, `${visible(list.model)} · ${visible(list.hook)} · step ${count(list.step)}`),
    el("nav", { class: "wb-tabs" }, tab("features", "Features"), tab("lookup", "Look up"))),
    list.leftOut ? el("div", { class: "wb-muted" }, list.leftOut) : null);
}

function search() {
  const box = el("input", { id: "search", class: "search", type: "search", placeholder: "Look up a token, such as import   ( / )", "aria-label": "Look up a token" });
  box.addEventListener("keydown", (event) => { if (event.key === "Enter" && box.value) location.hash = to("lookup", { q: box.value }); });
  const turn = el("button", { title: "Light or dark", "aria-label": "Light or dark", onclick: () => {
    document.documentElement.style.colorScheme = theme() === "dark" ? "light" : "dark";
  } }, "◐");
  return el("span", { class: "wide" }, box, " ", turn);
}

function notice(text) {
  return el("div", { class: "wb-notice" }, el("span", {}, text));
}

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); document.getElementById("search")?.focus(); }
  if (event.key === "ArrowLeft") document.getElementById("previous")?.click();
  if (event.key === "ArrowRight") document.getElementById("next")?.click();
});
