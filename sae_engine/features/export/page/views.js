"use strict";
/* The pages: feature list, feature, and token lookup. */

const PAGE_SIZE = 50;
const DENSE = 0.1;
const REACH = 24;

/* Place of each feature in the columns of the list. */
let places = new Map();

const density = (place) => wb.data.list.fired[place] / wb.data.list.numTokens;
const state = (place) => wb.data.list.fired[place] === 0 ? "dead" : density(place) > DENSE ? "dense" : "alive";
const label = (index) => places.has(index) ? wb.data.list.label[places.get(index)] : "";

/* A feature's label, or else its provisional name. */
function named(place) {
  const { label, name } = wb.data.list;
  if (label[place] || !name[place]) return visible(label[place]);
  const tip = "Provisional: the word that describes this feature best";
  return el("span", { class: "wb-provisional", title: tip }, visible(name[place]));
}

function chosen(query) {
  const list = wb.data.list;
  const q = (query.get("q") || "").trim().toLowerCase();
  const wanted = query.get("state");
  let kept = list.index.map((_, place) => place);
  if (wanted === "starred") { const starred = new Set(list.starred); kept = kept.filter((p) => starred.has(list.index[p])); }
  else if (wanted) kept = kept.filter((place) => state(place) === wanted);
  if (q) {
    const exact = q.match(/^#?(\d+)$/);
    const hits = new Set(list.texts.flatMap((text, n) => text.toLowerCase().includes(q) ? [n] : []));
    kept = kept.filter((place) => (exact && list.index[place] === Number(exact[1]))
      || (!q.startsWith("#") && (list.label[place].toLowerCase().includes(q) || list.top[place].some((n) => hits.has(n)))));
  }
  const sort = query.get("sort") || "max";
  const sign = (query.get("order") || firstOrder(sort)) === "asc" ? 1 : -1;
  if (sort === "label") {
    kept.sort((a, b) => (!list.label[a] - !list.label[b]) || sign * list.label[a].localeCompare(list.label[b]) || a - b);
  } else {
    const column = { index: list.index, density: list.fired, max: list.max }[sort];
    kept.sort((a, b) => sign * (column[a] - column[b]) || a - b);
  }
  return kept;
}

const firstOrder = (sort) => sort === "index" || sort === "label" ? "asc" : "desc";

async function featuresPage(query) {
  const list = wb.data.list;
  const kept = chosen(query);
  const pages = Math.max(1, Math.ceil(kept.length / PAGE_SIZE));
  const page = Math.min(Math.max(1, Number(query.get("page")) || 1), pages);
  const shown = kept.slice((page - 1) * PAGE_SIZE, page * PAGE_SIZE);
  const rows = await Promise.all(shown.map(featureRow));
  const box = el("input", { type: "search", placeholder: "Label, token or #index", "aria-label": "Filter", value: query.get("q") || "" });
  box.addEventListener("change", () => { location.hash = changed({ q: box.value, page: null }); });
  const states = ["all", "alive", "dense", ...(list.fired.includes(0) ? ["dead"] : []), ...(list.starred.length ? ["starred"] : [])];
  const now = query.get("state") || "all";
  const heading = (name, title) => {
    const sort = query.get("sort") || "max";
    const order = query.get("order") || firstOrder(sort);
    const turned = name === sort ? (order === "asc" ? "desc" : "asc") : firstOrder(name);
    const arrow = name === sort ? (order === "desc" ? " ↓" : " ↑") : "";
    return el("th", {}, el("a", { href: changed({ sort: name, order: turned, page: null }) }, title + arrow));
  };
  return [
    head(visible(list.run), []),
    el("div", { class: "wb-bar" },
      states.map((name) => el("button", { class: name === now ? "on" : null, onclick: () => { location.hash = changed({ state: name === "all" ? null : name, page: null }); } }, name)),
      box, el("span", { class: "wb-muted" }, counted(kept.length, "feature")), search()),
    kept.length ? el("table", { class: "wb-table features" },
      el("thead", {}, el("tr", {}, heading("index", "Feature"), heading("density", "Density"), heading("max", "Max"),
        el("th", {}, "State"), heading("label", "Label"), el("th", {}, "Top tokens"), el("th", { class: "wide" }, "Strongest example"))),
      el("tbody", {}, rows)) : notice("No features match this filter."),
    el("div", { class: "wb-bar" },
      el("button", { disabled: page === 1, onclick: () => { location.hash = changed({ page: page - 1 }); } }, "‹ Previous"),
      el("span", { class: "wb-muted" }, `page ${count(page)} of ${count(pages)}`),
      el("button", { disabled: page === pages, onclick: () => { location.hash = changed({ page: page + 1 }); } }, "Next ›")),
  ];
}

async function example(place) {
  const list = wb.data.list;
  const chunk = await wb.get(`examples-${Math.floor(place / list.examplesPerChunk)}`);
  const stored = chunk.examples[list.index[place]];
  if (!stored) return el("span", { class: "wb-muted" }, "no example");
  const context = unpacked(stored, chunk.texts);
  return centered(context, Math.max(...context.activations), 14);
}

async function featureRow(place) {
  const list = wb.data.list;
  return el("tr", {},
    el("td", {}, el("a", { class: "wb-name", href: to(`feature/${list.index[place]}`) }, String(list.index[place]))),
    el("td", { class: "num", title: `${count(list.fired[place])} of ${count(list.numTokens)} tokens` }, percent(density(place))),
    el("td", { class: "num" }, number(list.max[place])),
    el("td", {}, el("span", { class: `wb-state ${state(place)}` }, state(place))),
    el("td", { class: "label" }, named(place)),
    el("td", { class: "tops" }, list.top[place].slice(0, 4).map((n) => chip(list.texts[n]))),
    el("td", { class: "example" }, await example(place)));
}

async function featurePage(index, query) {
  const list = wb.data.list;
  const crumbs = [el("a", { href: to("features") }, visible(list.run)), el("span", {}, "/"), el("a", { href: to("features") }, "Features")];
  const place = places.get(index);
  if (place === undefined) {
    const inside = index >= 0 && index < list.numFeatures;
    return [head("Feature", crumbs), notice(inside ? `Feature ${index} is not in this export: it never fired.` : `There is no feature ${index}; this SAE has features 0 to ${list.numFeatures - 1}.`)];
  }
  const chunk = await wb.get(`features-${Math.floor(place / list.featuresPerChunk)}`);
  const page = chunk.features[index];
  const go = (p) => () => { if (p >= 0 && p < list.index.length) location.hash = to(`feature/${list.index[p]}`, Object.fromEntries(query)); };
  const jump = el("input", { type: "number", min: 0, max: list.numFeatures - 1, value: index, "aria-label": "Go to" });
  jump.addEventListener("change", () => { location.hash = to(`feature/${jump.value}`, Object.fromEntries(query)); });
  return [
    head(`Feature ${index}`, crumbs),
    el("div", { class: "wb-bar" },
      el("button", { id: "previous", disabled: place === 0, onclick: go(place - 1) }, "‹ Previous"),
      el("button", { id: "next", disabled: place === list.index.length - 1, onclick: go(place + 1) }, "Next ›"),
      el("button", { onclick: () => go(Math.floor(Math.random() * list.index.length))() }, "Random"),
      jump, el("span", { class: `wb-state ${state(place)}` }, state(place)), search()),
    el("div", { class: "wb-columns" }, facts(index, place, page, chunk.texts), evidence(place, page, chunk.texts, query.get("view") === "full")),
  ];
}

function facts(index, place, page, texts) {
  const list = wb.data.list;
  const score = page.score && `On held-out contexts: precision ${percent(page.score[0])}, recall ${percent(page.score[1])} (label by ${page.labeler})`;
  return el("div", {},
    label(index) ? el("p", { class: "wb-label" }, visible(label(index))) : null,
    score ? el("p", { class: "wb-muted" }, score) : null,
    page.notes ? el("p", {}, visible(page.notes)) : null,
    el("dl", { class: "wb-facts" },
      el("dt", {}, "Density"), el("dd", {}, `${percent(density(place))} (${count(list.fired[place])} of ${count(list.numTokens)} tokens)`),
      el("dt", {}, "Max activation"), el("dd", {}, number(list.max[place]))),
    page.tokens.length ? [el("h3", { class: "wb-panel" }, "Top tokens"), el("table", { class: "wb-table small" },
      el("thead", {}, el("tr", {}, el("th", {}, "Token"), ["Fires", "Precision", "Recall"].map((name) => el("th", { class: "num" }, name)))),
      el("tbody", {}, page.tokens.map(([n, fires, precision, recall]) => el("tr", {},
        el("td", {}, el("a", { href: to("lookup", { q: texts[n] }) }, chip(texts[n]))),
        [count(fires), percent(precision), percent(recall)].map((cell) => el("td", { class: "num" }, cell))))))] : [],
    page.neighbours.length ? [el("h3", { class: "wb-panel", title: "By cosine between decoder rows" }, "Nearest features"),
      el("ul", { class: "wb-neighbours" }, page.neighbours.map(([near, cosine]) => el("li", {},
        el("a", { href: to(`feature/${near}`) }, String(near)), el("span", {}, visible(label(near))),
        el("span", { class: "num" }, cosine.toFixed(2)))))] : []);
}

function evidence(place, page, texts, full) {
  const logits = (name, sign) => {
    const widest = Math.max(...page[sign].map(([, value]) => Math.abs(value))) || 1;
    return el("div", {}, el("h3", { class: "wb-panel" }, name), el("div", { class: "wb-logits" }, page[sign].slice(0, 8).map(([n, value]) => {
      const bar = el("i");
      bar.style.width = `${100 * Math.abs(value) / widest}%`;
      return el("div", { class: `wb-logit ${sign}` }, el("span", {}, chip(texts[n])), el("span", { class: "bar" }, bar),
        el("span", { class: "num" }, (value > 0 ? "+" : "") + value.toFixed(2)));
    })));
  };
  const groups = [[null, page.contexts], ...page.intervals.map(([low, high, share, contexts]) => [
    [`Activation ${low.toFixed(2)}–${high.toFixed(2)} `, el("small", {}, `(${percent(share)} of firings)`)], contexts])];
  const largest = Math.max(0, ...groups.flatMap(([, contexts]) => contexts.flatMap(([, active]) => active.filter((_, i) => i % 2))));
  const view = (name) => el("button", { class: (name === "full") === full ? "on" : null, onclick: () => { location.hash = changed({ view: name === "full" ? "full" : null }); } }, name);
  return el("div", {},
    el("div", { class: page.positive ? "wb-graphs" : "" },
      page.positive ? el("div", { class: "wb-two" }, logits("Negative logits", "negative"), logits("Positive logits", "positive")) : null,
      page.histogram.length ? el("div", {}, el("h3", { class: "wb-panel" }, "Activations"), histogram(page.histogram, wb.data.list.max[place])) : null),
    page.contexts.length ? [
      el("div", { class: "wb-bar" }, el("h3", { class: "wb-section" }, "Top activations"), el("span", { class: "wide" }, view("snippet"), " ", view("full"))),
      groups.flatMap(([title, contexts]) => [
        title ? el("h3", { class: "wb-section" }, title) : null,
        el("div", { class: `wb-contexts${full ? " full" : ""}` }, contexts.map((stored) => contextLine(stored, texts, largest, full)))]),
    ] : notice(`This feature never fired in the ${count(wb.data.list.numTokens)} tokens of this index.`));
}

function contextLine(stored, texts, largest, full) {
  const context = unpacked(stored, texts);
  const [, , peak, row, position, copies] = stored;
  return el("div", { class: "wb-line", title: `row ${row}, position ${position}` },
    el("div", { class: "wb-gutter" }, el("span", { class: "wb-value" }, number(context.activations[peak])), chip(context.tokens[peak]),
      copies > 1 ? el("span", { class: "wb-copies", title: `${copies} contexts with these tokens, shown once` }, `×${copies}`) : null),
    full ? el("div", { class: "wb-text" }, spans(context, 0, context.tokens.length, largest)) : centered(context, largest, REACH));
}

function histogram(counts, max) {
  const svg = (tag, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const highest = Math.max(...counts);
  const width = 400 / counts.length;
  const bars = counts.map((height, i) => svg("rect", { x: i * width, width: width * 0.9, y: 150 - 145 * height / highest, height: 145 * height / highest },
    svg("title", {}, `${number(max * i / counts.length)} – ${number(max * (i + 1) / counts.length)}: ${count(height)}`)));
  return el("div", { class: "wb-bars" }, svg("svg", { viewBox: "0 0 400 150", preserveAspectRatio: "none" }, ...bars),
    el("div", { class: "wb-muted" }, el("span", {}, "0"), el("span", {}, number(max))));
}

/* `cat`, ` cat` and ` Cat` are equal, and so are `ß` and `SS`; only spaces are kept as they are. */
const folded = (text) => text.toUpperCase().toLowerCase().replace(/ς/g, "σ").replace(/^[ ▁]+|[ ▁]+$/g, "") || text;

async function lookupPage(query) {
  const list = wb.data.list, tokens = wb.data.tokens;
  const q = query.get("q") || "";
  const box = el("input", { type: "search", value: q, placeholder: "Token, e.g. import", "aria-label": "Token" });
  box.addEventListener("change", () => { location.hash = changed({ q: box.value }); });
  const top = [head("Look up a token", [el("a", { href: to("features") }, visible(list.run))]),
    el("div", { class: "wb-bar" }, box, search())];
  if (!q) return [...top, notice("Type a token to see the features that fire on it.")];
  const wanted = folded(q);
  const group = tokens.texts.indexOf(wanted);
  const similar = tokens.texts.flatMap((text, n) => n !== group && text.includes(wanted) ? [n] : [])
    .sort((a, b) => tokens.counts[b] - tokens.counts[a]).slice(0, 30);
  const more = similar.length ? el("div", { class: "wb-matched" }, "Tokens that contain this text: ",
    similar.map((n) => el("a", { href: to("lookup", { q: tokens.texts[n] }) }, chip(tokens.texts[n], count(tokens.counts[n]))))) : null;
  if (group < 0) return [...top, notice(`The token “${visible(q)}” does not occur in the ${count(list.numTokens)} tokens of this index. For phrases, use the app.`), more];
  const [members, features] = (await wb.get(`lookup-${Math.floor(group / list.groupsPerChunk)}`))[group % list.groupsPerChunk];
  const total = tokens.counts[group];
  const sort = query.get("rank") || "f1";
  const found = features.map(([index, hits, mean, max]) => {
    const fired = list.fired[places.get(index)];
    const recall = hits / total, precision = hits / fired;
    return { index, hits, mean, max, recall, precision, f1: 2 * hits / (total + fired), lift: precision * list.numTokens / total };
  }).sort((a, b) => b[sort] - a[sort] || a.index - b.index);
  const heading = (name, title) => el("th", { class: "num" }, el("a", { href: changed({ rank: name }) }, title + (name === sort ? " ↓" : "")));
  const rows = await Promise.all(found.map(async (f) => el("tr", {},
    el("td", {}, el("a", { class: "wb-name", href: to(`feature/${f.index}`) }, String(f.index))),
    el("td", { class: "num" }, number(f.f1)), el("td", { class: "num" }, percent(f.precision)), el("td", { class: "num" }, percent(f.recall)),
    el("td", { class: "num" }, number(f.lift)), el("td", { class: "num" }, number(f.mean)), el("td", { class: "num" }, number(f.max)), el("td", { class: "num" }, count(f.hits)),
    el("td", { class: "label" }, visible(label(f.index))), el("td", { class: "example" }, await example(places.get(f.index))))));
  return [...top,
    el("div", { class: "wb-matched" }, members.map(([text, times]) => chip(text, count(times)))),
    rows.length ? el("table", { class: "wb-table lookup" }, el("thead", {}, el("tr", {}, el("th", {}, "Feature"), heading("f1", "F1"), heading("precision", "Precision"), heading("recall", "Recall"),
      heading("lift", "Lift"), heading("mean", "Mean"), heading("max", "Max"), heading("hits", "Fires"), el("th", {}, "Label"), el("th", {}, "Strongest example"))), el("tbody", {}, rows))
      : notice("No features fire on this token."),
    features.length === list.featuresPerGroup ? el("p", { class: "wb-muted" }, `Top ${list.featuresPerGroup} features by F1; the app ranks all features.`) : null,
    more];
}

let drawn = 0;
async function show() {
  const turn = ++drawn;
  const { page, query } = address();
  const feature = page.match(/^feature\/(\d+)$/);
  let content;
  try {
    content = await (feature ? featurePage(Number(feature[1]), query) : page === "lookup" ? lookupPage(query) : featuresPage(query));
  } catch (error) {
    content = [notice(error.message)];
  }
  if (turn !== drawn) return;
  document.getElementById("page").replaceChildren(...content.flat(Infinity).filter((child) => child != null));
  if (feature || page !== "lookup") window.scrollTo(0, 0);
}

window.addEventListener("hashchange", show);
window.addEventListener("DOMContentLoaded", async () => {
  await Promise.all([wb.get("list"), wb.get("tokens")]);
  places = new Map(wb.data.list.index.map((index, place) => [index, place]));
  show();
});
