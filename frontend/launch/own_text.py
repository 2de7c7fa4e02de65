"""Uploads of files, and the text of a run on the launch page: its first documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import streamlit as st
from pydantic import ValidationError

from frontend.api.cache import client
from frontend.api.client import ApiProblem
from frontend.html.blocks import base_path, component, html_block, notice
from frontend.html.tokens import escaped
from frontend.launch.drafts import Draft
from frontend.shell.downloads import pages_serve_the_api
from frontend.shell.url import set_param
from sae_engine.schema.machine import EstimateRequest
from sae_engine.schema.texts import TextPreview, UploadedText

_HTML = """
<div class="wb-upload">
  <label>Upload a file…<input type="file"></label>
  <span class="wb-progress" hidden><i></i></span>
  <span class="note"></span>
</div>
"""

# The browser sends the file to the API itself, so that no process holds it in memory.
_JS = """
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".wb-upload");
  const [input, bar, note] = ["input", ".wb-progress", ".note"].map((at) => root.querySelector(at));
  const say = (text, css = "") => { note.textContent = text; note.className = `note ${css}`; };
  const failed = (text) => { bar.hidden = true; input.disabled = false; say(text, "bad"); };
  input.onchange = () => {
    const file = input.files[0];
    if (!file) return;
    const request = new XMLHttpRequest();
    request.open("POST", `${data}?name=${encodeURIComponent(file.name)}`);
    request.upload.onprogress = ({ loaded, total }) => {
      bar.firstElementChild.style.width = `${(100 * loaded) / total}%`;
      say(`${file.name}: ${Math.floor((100 * loaded) / total)}%`);
    };
    request.onerror = () => failed("The upload broke off; try again.");
    request.onload = () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* not from the API */ }
      if (request.status !== 201) return failed(answer.detail ?? `Refused (${request.status}).`);
      bar.hidden = true;
      input.disabled = false;
      say(`Uploaded to ${answer.path}.`);
      setTriggerValue("uploaded", request.responseText);
    };
    input.value = "";
    input.disabled = true;
    bar.hidden = false;
    say(`${file.name}…`);
    request.send(file);
  };
}
"""


def upload_box() -> None:
    """A button that uploads a file and enters its path into the form; draw it before the fields."""
    if (answer := uploaded("texts")) is not None:
        use_text(answer)


def uploaded(kind: Literal["texts", "saes"]) -> str | None:
    """A button that uploads a file; returns the API's answer once, when the file is there."""
    address = f"{base_path()}/api/{kind}"
    if not pages_serve_the_api():
        html_block(f'<p class="wb-muted">Upload a file: <code>POST {address}?name=…</code></p>')
        return None
    box = component("wb_upload", js=_JS, html=_HTML)
    done = box(key="upload", data=address, on_uploaded_change=lambda: None)
    return str(done.uploaded) if done.uploaded else None


def use_text(answer: str) -> None:
    """Enter an uploaded file into the form; `answer` is the API's."""
    try:
        found = UploadedText.model_validate_json(answer)
    except ValidationError:
        return
    set_param("data.dataset", found.path)
    if found.text_column is not None:
        set_param("data.text_column", found.text_column)


def show_preview(draft: Draft) -> None:
    """The first documents of the form's text, once the reader unfolds them."""
    part = st.expander("Preview of the text", key="preview", on_change="rerun")
    if not part.open:
        return
    with part:
        recipe = draft.recipe
        body = EstimateRequest(preset=recipe.preset, config=draft.first_changes)
        try:
            found = client().preview(body)
        except ApiProblem as error:
            if error.unreachable:
                raise
            html_block(notice(str(error), level="warning"))
        else:
            html_block(preview_block(found))


def preview_block(previews: Sequence[TextPreview]) -> str:
    """The first documents of each dataset as HTML, and where they come from."""
    if not previews:
        return notice("Activation files hold no text to show.")
    return "".join(map(_preview, previews))


def _preview(found: TextPreview) -> str:
    notices = "".join(notice(text) for text in found.notices)
    title = f"<strong>{escaped(found.dataset)}</strong> · {_read_from(found)}"
    head = f'<p class="wb-muted">{title}</p>{notices}'
    documents = "".join(f"<li>{escaped(text)}</li>" for text in found.documents)
    return f'{head}<ol class="wb-documents">{documents}</ol>' if documents else head


_DOCUMENTS = {
    "paragraphs": "a document ends at each blank line",
    "lines": "each line is a document",
    "file": "each file is one document",
}


def _read_from(found: TextPreview) -> str:
    column = f"<code>{escaped(found.text_column or '')}</code>"
    if found.columns:
        others = [name for name in found.columns if name != found.text_column]
        more = f" (others: {escaped(', '.join(others))})" if others else ""
        return f"read from the column {column}{more}"
    if found.text_column is None:
        return "plain text" + (f"; {_DOCUMENTS[found.division]}" if found.division else "")
    return f"on the Hugging Face hub, column {column}; read when the run starts"
