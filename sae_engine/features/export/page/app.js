"use strict";
/* Data loading, page elements and addresses.

   Text from the corpus or from users only becomes text nodes or attributes set by name. */

const wb = {
  data: {},
  waiting: {},
  put(name, value) {
    wb.data[name] = value;
    (wb.waiting[name] || []).forEach((done) => done(value));
    delete wb.waiting[name];
  },
  /* Returns a promise of a chunk; its script is loaded on first use. */
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

/* Creates an element; strings among its children become text, null is ignored. */
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

/* Text with visible symbols for characters that are invisible or reorder text. */
function visible(text) {
  return text.replace(/[\x00-\x1f\x7f\xa0]|[\p{Cf}\p{Cc}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0);
    if (PICTURES[character]) return PICTURES[character];
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    return `‹${code.toString(16).toUpperCase().padStart(4, "0")}›`;
  });
}

/* A single token with visible outer spaces. */
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
const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
const percent = (share) => share == null ? "–" : `${number(share * 100)}%`;

/* 0.05 + 0.95 log10(1 + 9 r), as in the app. */
function opacity(activation, largest) {
  if (!(activation > 0 && largest > 0)) return 0;
  return 0.05 + 0.95 * Math.log10(1 + 9 * Math.min(activation / largest, 1));
}

/* Decodes a stored context into tokens and activations. */
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
    const token = el("b", { class: strength > 0.675 ? "h" : null, "data-v": number(context.activations[i]) }, text);
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

/* The page and its state, from the part of the address after #. */
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

/* Light or dark: the chosen theme, or else that of the system. */
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
  const box = el("input", { id: "search", class: "search", type: "search", placeholder: "Look up a token, e.g. import (press /)", "aria-label": "Look up a token" });
  box.addEventListener("keydown", (event) => { if (event.key === "Enter" && box.value) location.hash = to("lookup", { q: box.value }); });
  const turn = el("button", { title: "Toggle dark mode", "aria-label": "Toggle dark mode", onclick: () => {
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
