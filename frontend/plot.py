"""Plotly charts that are updated in place, so that zoom and hover survive while a run is live.

Streamlit's own chart element is made anew whenever its data change. This one hands new data to
`Plotly.react` instead; the library is served from `static/`, by Streamlit itself.
"""

from __future__ import annotations

from typing import Any

import streamlit as st
from streamlit.components import v2

from frontend.charts import Figure

_LIBRARY = "app/static/plotly-basic.min.js"

_JS = """
const library = (url) => window.wbPlotly ??= new Promise((resolve, reject) => {
  const script = document.createElement("script");
  script.src = url;
  script.onload = () => resolve(window.Plotly);
  script.onerror = () => { window.wbPlotly = undefined; reject(new Error("no " + url)); };
  document.head.append(script);
});

// Colors of the theme, as the style sheet resolves them for this place.
const themed = (layout, box) => {
  const text = getComputedStyle(box).color, ground = getComputedStyle(box).backgroundColor;
  const line = getComputedStyle(box).borderTopColor;
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line };
  return {
    ...layout,
    font: { family: getComputedStyle(box).fontFamily, size: 12, color: text },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: ground, bordercolor: line, font: { color: text } },
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  };
};

export default async function ({ data, parentElement }) {
  const box = parentElement.querySelector(".wb-plot");
  box.style.minHeight = data.figure.layout.height + "px";
  box.wbLatest = data;
  const Plotly = await library(data.library);
  if (box.wbLatest !== data || !box.isConnected) return;
  const { data: traces, layout } = structuredClone(data.figure);
  const first = !box.wbDrawn;
  box.wbDrawn = true;
  await Plotly.react(box, traces, themed(layout, box), { displayModeBar: false });
  if (first) {
    box.on("plotly_hover", (event) => { box.wbHover = event.points[0].x; });
    box.on("plotly_unhover", () => { box.wbHover = undefined; });
    new ResizeObserver(() => box.isConnected && Plotly.Plots.resize(box)).observe(box);
  } else if (box.wbHover !== undefined) {
    Plotly.Fx.hover(box, { xval: box.wbHover });
  }
}
"""


def show_figure(figure: Figure, *, key: str) -> None:
    """Show a chart; shown again under the same key it is updated in place."""
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    library = f"/{base}/{_LIBRARY}" if base else f"/{_LIBRARY}"
    _component()(key=key, data={"figure": figure, "library": library})


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    return v2.component("wb_plot", html='<div class="wb-plot"></div>', js=_JS, isolate_styles=False)
