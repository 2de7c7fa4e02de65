"""Plotly charts that are updated in place, so that zoom and hover survive while a run is live.

Streamlit's own chart element is recreated whenever its data change. This one passes new data to
`Plotly.react` instead; Streamlit serves the library from `static/`.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from frontend.charts.figure import Figure
from frontend.html.blocks import base_path, component

Library = Literal["basic", "gl2d"]
"""Plotly's bundle for a chart: `basic` for curves and bars, `gl2d` for many thousand points."""

_JS = """
const libraries = window.wbPlotly ??= {};
const library = (url) => libraries[url] ??= new Promise((resolve, reject) => {
  const script = document.createElement("script");
  script.src = url;
  script.onload = () => resolve(window.Plotly);
  script.onerror = () => { libraries[url] = undefined; reject(new Error("no " + url)); };
  document.head.append(script);
});

// Colors of the theme, as the style sheet resolves them here.
const themed = (layout, box) => {
  const text = getComputedStyle(box).color, ground = getComputedStyle(box).backgroundColor;
  const line = getComputedStyle(box).borderTopColor;
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line };
  return {
    ...layout,
    font: { family: getComputedStyle(box).fontFamily, size: 12, color: text },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: ground, bordercolor: line, font: { color: text } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: text, activecolor: text },
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    annotations: layout.annotations?.map((note) => ({ bgcolor: ground, ...note })),
  };
};

// A move within the session, like the browser's Back.
const open = (address) => {
  history.pushState({}, "", address);
  window.dispatchEvent(new PopStateEvent("popstate"));
};
const openRange = (range, low, high) => {
  const address = new URL(range.address, location.href);
  address.searchParams.set(range.low, low);
  address.searchParams.set(range.high, high);
  open(address);
};
const clicked = (box, point) => {
  const { opens, range } = box.wbLatest;
  if (opens) open(opens + point.customdata);
  if (range) openRange(range, ...point.customdata);
};
const selected = (box, event) => {
  const { range } = box.wbLatest, bounds = event?.range?.x;
  if (!range || !bounds) return;
  const [low, high] = bounds.map((x) => Math.min(1, 10 ** x).toPrecision(3) * 1);
  openRange(range, low, high);
};

let hasWebgl;
const drawable = (traces) => {
  hasWebgl ??= !!document.createElement("canvas").getContext("webgl");
  if (!hasWebgl) for (const trace of traces) if (trace.type === "scattergl") trace.type = "scatter";
  return traces;
};

// Charts of one group show the same place of their common axis.
const others = (box) => [...document.querySelectorAll(".wb-plot")].filter(
  (other) => other !== box && other.wbDrawn && other.wbLatest.group === box.wbLatest.group);
const follow = (box, event) => {
  box.wbHover = event.points[0].x;
  if (!box.wbLatest.group || !event.event?.isTrusted) return;  // else it follows another chart
  for (const other of others(box)) window.Plotly.Fx.hover(other, { xval: box.wbHover });
};
const leave = (box, event) => {
  box.wbHover = undefined;
  if (!box.wbLatest.group || !event.event?.isTrusted) return;
  for (const other of others(box)) window.Plotly.Fx.unhover(other);
};

export default async function ({ data, parentElement }) {
  const box = parentElement.querySelector(".wb-plot");
  box.setAttribute("aria-label", data.figure.layout.title?.text ?? data.about);
  box.style.minHeight = data.figure.layout.height + "px";
  box.wbLatest = data;
  if (!box.wbDrawn) box.textContent = "Loading the chart…";
  const Plotly = await library(data.library);
  if (box.wbLatest !== data || !box.isConnected) return;
  const { data: traces, layout } = structuredClone(data.figure);
  const first = !box.wbDrawn;
  if (first) box.textContent = "";
  box.wbDrawn = true;
  const isMap = layout.dragmode === "pan";  // it has a button to save it as an image
  box.setAttribute("role", isMap ? "group" : "img");
  const config = { displayModeBar: isMap, displaylogo: false, modeBarButtons: [["toImage"]],
    toImageButtonOptions: { filename: "features", scale: 2 }, scrollZoom: isMap };
  await Plotly.react(box, drawable(traces), themed(layout, box), config);
  if (first) {
    box.on("plotly_hover", (event) => follow(box, event));
    box.on("plotly_unhover", (event) => leave(box, event));
    box.on("plotly_click", (event) => clicked(box, event.points[0]));
    box.on("plotly_selected", (event) => selected(box, event));
    new ResizeObserver(() => box.isConnected && Plotly.Plots.resize(box)).observe(box);
  } else if (box.wbHover !== undefined) {
    Plotly.Fx.hover(box, { xval: box.wbHover });
  }
}
"""


class Range(TypedDict):
    """Where a selected range of a logarithmic axis leads: an address and its two parameters."""

    address: str
    low: str
    high: str


def show_figure(
    figure: Figure,
    *,
    key: str,
    library: Library = "basic",
    opens: str | None = None,
    range: Range | None = None,
    group: str | None = None,
    about: str = "Chart",
) -> None:
    """Show a chart; shown again under the same key it is updated in place.

    A click on a point opens `opens` followed by the point's `customdata`. With a `range`, a click
    on a bar (its `customdata` are its bounds) or a selection on the axis opens the range's address.
    Charts of a `group` share their horizontal axis: hovering one shows the same place in all.
    `about` tells a reader who cannot see the chart what it shows.
    """
    url = f"{base_path()}/app/static/plotly-{library}.min.js"
    data = {"figure": figure, "library": url, "opens": opens, "range": range, "about": about}
    data |= {"group": group}
    component("wb_plot", js=_JS, html='<div class="wb-plot"></div>')(key=key, data=data)
