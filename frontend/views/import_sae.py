"""Import an SAE: say where it is, check what its files say about it, start."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import streamlit as st
from pydantic import ValidationError

from frontend.api.cache import client
from frontend.api.client import ApiProblem
from frontend.html.blocks import html_block, notice
from frontend.html.tokens import escaped
from frontend.launch.drafts import sent_once
from frontend.launch.own_text import uploaded
from frontend.shell.navigation import name_tab, open_page
from frontend.shell.problems import show_problem
from frontend.shell.url import bound_text, param, set_param
from sae_engine.schema.fields import field_specs, parse_value
from sae_engine.schema.problems import message_of
from sae_engine.schema.runs import ImportCreate
from sae_engine.schema.saes import FoundSAE, UploadedSAE

EXAMPLE = "hub:google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
INTRODUCTION = (
    "Enter a Hugging Face path (hub:OWNER/NAME/PATH) or a file or folder on the server, "
    "or upload a .zip, .safetensors or .npz file. "
    "Supported formats: SAELens, sparsify, Gemma Scope, Qwen-Scope, dictionary_learning, "
    "SAE Workbench."
)
SITES = {
    "resid_post": "Residual stream after the layer",
    "mlp_out": "What the MLP adds",
    "attn_out": "What attention adds",
}
ELSEWHERE = "Another module"


def show() -> None:
    """The page."""
    name_tab("Import an SAE")
    html_block('<h1 class="wb-title">Import an SAE</h1>')
    html_block(f'<p class="wb-muted">{escaped(INTRODUCTION)}</p>')
    field = st.container()
    if (answer := uploaded("saes")) is not None:
        use_upload(answer)
    path = (param("path") or "").strip()
    with field:
        bound_text("From", "path", path, placeholder=EXAMPLE, show_title=True, max_chars=500)
    if not path:
        return
    try:
        with st.spinner("Reading the SAE's settings"):
            found = _found(path)
    except ApiProblem as error:
        _explain(error)
        return
    _show_found(found)
    body = _form(found)
    if st.button("Import", type="primary", icon=":material/download:", key="import"):
        _start(body)


def use_upload(answer: str) -> None:
    """Enter an uploaded file as the SAE to import; `answer` is the API's."""
    with suppress(ValidationError):
        set_param("path", UploadedSAE.model_validate_json(answer).path)


def _found(path: str) -> FoundSAE:
    """What the files say, asked once for each path typed; raises `ApiProblem`."""
    kept: tuple[str, FoundSAE] | None = st.session_state.get("found-sae")
    if kept is None or kept[0] != path:
        kept = st.session_state["found-sae"] = (path, client().found_sae(path))
    return kept[1]


def _show_found(found: FoundSAE) -> None:
    place = f", trained on {found.place}" if found.place else ""
    html_block(f'<p class="wb-muted">Format: {escaped(found.format + place)}</p>')
    if found.remedy is not None:
        html_block(notice(f"{found.place}: {found.remedy}.", level="warning"))
    for note in found.notes:
        html_block(notice(note))


def _explain(error: ApiProblem) -> None:
    if error.problem.status != 422:
        show_problem(error)
        return
    reasons = [problem.message for problem in error.problem.errors]
    text = "\n".join(reasons or [error.problem.detail or error.problem.title])
    html_block(notice(text, level="warning", title="Can't import this SAE"))


def _form(found: FoundSAE) -> dict[str, Any]:
    """Inputs that start from what the files say; returns the request."""

    def key(name: str) -> str:  # other inputs for another SAE
        return f"import:{found.path}:{name}"

    body: dict[str, Any] = {"path": found.path, "format": found.format}
    left, right = st.columns(2)
    with left:
        body["model"] = st.text_input(
            "Language model",
            found.model or "",
            key=key("model"),
            placeholder="google/gemma-2-2b",
            help="The model that the SAE was trained on: a Hugging Face id or a local folder.",
        )
        body["name"] = st.text_input("Name of the run", found.name, key=key("name"))
        text = field_specs()["data.dataset"]
        dataset = st.text_input(
            "Text to evaluate on", str(text.default), key=key("dataset"), help=text.help
        ).strip()
        if dataset not in ("", text.default):
            body["config"] = {"data": {"dataset": dataset}}
    with right:
        choices = [*SITES, ELSEWHERE]
        is_elsewhere = found.hook_point or (found.remedy and not found.site)
        start = ELSEWHERE if is_elsewhere else found.site or "resid_post"
        chosen = st.selectbox(
            "Reads from",
            choices,
            choices.index(start),
            key=key("site"),
            format_func=_title,
        )
        if chosen == ELSEWHERE:
            body |= _module(found, key("hook_point"), key("hook_io"))
        else:
            known = "" if found.layer is None else str(found.layer)
            text = st.text_input("Layer", known, key=key("layer"))
            layer = parse_value("model.layer", text.strip()) if text.strip() else None
            body |= {"site": chosen, "layer": layer}
            if found.layer is not None and layer != found.layer:
                html_block(notice(f"Its files say layer {known}.", level="warning"))
    return {name: value for name, value in body.items() if value not in (None, "")}


def _title(site: str) -> str:
    return SITES.get(site, site)


def _module(found: FoundSAE, path_key: str, side_key: str) -> dict[str, Any]:
    path = st.text_input(
        "Module", found.hook_point or "", key=path_key, placeholder="model.layers.12.mlp"
    )
    sides = ["output", "input"]
    side = st.selectbox("Side of it", sides, sides.index(found.hook_io), key=side_key)
    return {"hook_point": path, "hook_io": side}


def _start(body: dict[str, Any]) -> None:
    try:
        request = ImportCreate.model_validate(body)
        with sent_once(request) as key:
            run = client().create_import(request, idempotency_key=key)
    except ValidationError as error:
        first = error.errors()[0]
        html_block(notice(f"{first['loc'][0]}: {message_of(first)}", level="warning"))
    except ApiProblem as error:
        _explain(error)
    else:
        open_page("run", id=run.id)


if __name__ == "__main__":
    show()
