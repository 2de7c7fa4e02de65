"""The end of a log, followed as it grows unless the reader has scrolled up."""

from __future__ import annotations

from frontend.html.blocks import component

_HTML = """
<div class="wb-log">
  <div class="wb-logbar">
    <input type="search" placeholder="Filter lines" aria-label="Filter lines">
    <span></span><button class="wb-do" hidden>Jump to end ↓</button>
  </div>
  <pre tabindex="0"></pre>
</div>
"""

_JS = """
export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".wb-log");
  const [box, text] = [root.querySelector("input"), root.querySelector("pre")];
  const [note, end] = [root.querySelector("span"), root.querySelector("button")];
  const atEnd = () => text.scrollHeight - text.scrollTop - text.clientHeight < 24;
  const toEnd = () => { text.scrollTop = text.scrollHeight; end.hidden = true; };
  const draw = () => {
    const follow = !text.textContent || atEnd();
    const wanted = box.value.toLowerCase();
    const lines = data.split("\\n");
    const kept = wanted ? lines.filter((line) => line.toLowerCase().includes(wanted)) : lines;
    const shown = kept.join("\\n");
    if (text.textContent !== shown) text.textContent = shown;
    note.textContent = wanted ? `${kept.length} of ${lines.length} lines` : "";
    if (follow) toEnd();
  };
  box.oninput = draw;
  end.onclick = toEnd;
  text.onscroll = () => { end.hidden = atEnd(); };
  draw();
}
"""


def show_log(text: str, *, key: str) -> None:
    """Show the last lines of a log, as text."""
    component("wb_log", js=_JS, html=_HTML)(key=key, data=text.rstrip("\n"))
