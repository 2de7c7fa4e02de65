"""The panel that lets a prompt go on, plain beside steered; its state is in the address."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import streamlit as st

from frontend.api.cache import client, feature_row, num_features
from frontend.api.client import ApiProblem
from frontend.features.token_chips import MAX_STRENGTH, strengths_text
from frontend.html.blocks import html_block, link, show_linked
from frontend.html.format import number
from frontend.html.tokens import escaped
from frontend.shell.url import bound, int_param, param, set_param, show_problem
from frontend.shell.warm_up import waiting_line
from sae_engine.schema.playground import Side, SteerPhase, SteerResult
from sae_engine.schema.runs import Run

MAX_PROMPT = 4000
MAX_NEW_TOKENS = 200
DEFAULTS = {"seed": 0, "max": 40, "temp": 1.0}
TITLES: dict[Side, str] = {"plain": "Plain", "steered": "Steered"}


def steering(run: Run, step: int, strengths: Mapping[int, float]) -> None:
    """The panel; generates when the address says so (`go`)."""
    html_block('<h3 class="wb-section">Steering</h3>')
    left, right = st.columns([1, 1.15], gap="large")
    with left:
        _features(run, step, strengths)
        prompt = _prompt()
        seed, max_new_tokens, temperature = _sampling()
        question = (run.id, step, strengths_text(strengths), prompt, seed, max_new_tokens)
        question = (*question, temperature)
        held: tuple[object, SteerResult] | None = st.session_state.get("steered")
        result = held[1] if held is not None and held[0] == question else None
        going = param("go") == "1" and result is None and bool(prompt and strengths)
        _button(going=going, possible=bool(prompt and strengths))
    with right:
        if result is not None:
            html_block(_texts(prompt, {"plain": result.plain, "steered": result.steered}))
            return
        if not going:
            text = (
                "Write a prompt and press Generate."
                if strengths
                else "Choose a feature: press steer beside one above, or add its number."
            )
            html_block(f'<p class="wb-muted">{text}</p>')
            return
        answer = _generate(
            run, step, strengths, prompt, seed, max_new_tokens=max_new_tokens, temp=temperature
        )
    if answer is not None:
        st.session_state["steered"] = (question, answer)
        st.rerun()


def _generate(
    run: Run,
    step: int,
    strengths: Mapping[int, float],
    prompt: str,
    seed: int,
    *,
    max_new_tokens: int,
    temp: float,
) -> SteerResult | None:
    """Show both texts as they grow; None after a problem, which is shown."""
    place = st.empty()
    texts: dict[Side, str] = {"plain": "", "steered": ""}
    stream = client().steer(
        run.id,
        prompt,
        strengths,
        max_new_tokens=max_new_tokens,
        seed=seed,
        temperature=temp,
        snapshot=step,
    )
    try:
        while True:
            part = next(stream)
            if isinstance(part, SteerPhase):
                if not any(texts.values()):
                    place.html(waiting_line(part.phase))
            else:
                texts[part.side] += part.text
                place.html(_texts(prompt, texts))
    except StopIteration as end:
        return end.value
    except ApiProblem as error:
        set_param("go", None)
        show_problem(error)
        return None
    finally:
        stream.close()


def _texts(prompt: str, texts: Mapping[Side, str]) -> str:
    columns = "".join(
        f'<div><h3 class="wb-panel">{TITLES[side]}</h3><div class="wb-generated {side}">'
        f"<i>{_lines(prompt)}</i>{_lines(text)}</div></div>"
        for side, text in texts.items()
    )
    return f'<div class="wb-two">{columns}</div>'


def _lines(text: str) -> str:
    return escaped(text).replace("↵", "↵<br>")


def _features(run: Run, step: int, strengths: Mapping[int, float]) -> None:
    for index, strength in strengths.items():
        _feature(run, step, index, strength, strengths)
    last = num_features(run.id, step) - 1

    def add() -> None:
        index = st.session_state["steer-add"]
        if index is not None:
            set_param("steer", strengths_text({**strengths, index: 1.0}))
            set_param("go", None)
        st.session_state["steer-add"] = None

    st.number_input(
        "Add a feature",
        min_value=0,
        max_value=last,
        value=None,
        step=1,
        key="steer-add",
        on_change=add,
        placeholder=f"its number, 0 to {last}",
        width=220,
    )


def _feature(
    run: Run, step: int, index: int, strength: float, strengths: Mapping[int, float]
) -> None:
    key = f"strength:{index}"
    st.session_state[key] = strength

    def change() -> None:
        set_param("steer", strengths_text({**strengths, index: st.session_state[key]}))
        set_param("go", None)

    def remove() -> None:
        set_param("steer", strengths_text({i: s for i, s in strengths.items() if i != index}))
        set_param("go", None)

    row = feature_row(run.id, step, index)
    name, slider, button = st.columns([1.3, 2.4, 0.35], vertical_alignment="center")
    with name:
        query = {"id": run.id, "index": index, "snapshot": param("snapshot")}
        what = "does not exist" if row is None else f"max {number(row.max_activation)}"
        label = escaped(row.label or "") if row is not None else ""
        title = link("feature", f"Feature {index}", query, css="wb-index")
        show_linked(
            f'{title}<span class="wb-sub">{label}</span><span class="wb-sub">{what}</span>',
            key=f"steered:{index}",
        )
    with slider:
        st.slider(
            f"Strength of feature {index}",
            -MAX_STRENGTH,
            MAX_STRENGTH,
            step=0.25,
            key=key,
            on_change=change,
            format="%.2f × max",
            label_visibility="collapsed",
        )
    with button:
        st.button(
            "", icon=":material/close:", key=f"unsteer:{index}", help="Remove", on_click=remove
        )


def _settled(name: str, value: object) -> tuple[str, Callable[[], None]]:
    """A widget bound to the address, whose change asks for a new press of Generate."""
    key, write = bound(name, value, default=DEFAULTS.get(name))

    def changed() -> None:
        write()
        set_param("go", None)

    return key, changed


def _prompt() -> str:
    prompt = param("prompt") or (param("text") or "")[:MAX_PROMPT]
    key, changed = _settled("prompt", prompt)
    st.text_area(
        "Prompt", key=key, on_change=changed, height=90, max_chars=MAX_PROMPT, placeholder="import "
    )
    return prompt


def _sampling() -> tuple[int, int, float]:
    seed = int_param("seed") or 0
    longest = min(max(int_param("max") or 40, 1), MAX_NEW_TOKENS)
    temperature = _temperature()
    with st.container(horizontal=True, gap="medium"):
        key, changed = _settled("max", longest)
        st.slider("New tokens", 1, MAX_NEW_TOKENS, key=key, on_change=changed, width=165)
        key, changed = _settled("temp", temperature)
        st.slider(
            "Temperature",
            0.0,
            2.0,
            step=0.1,
            key=key,
            on_change=changed,
            width=165,
            help="0 always takes the likeliest token.",
        )
        key, changed = _settled("seed", seed)
        st.number_input(
            "Seed",
            min_value=0,
            step=1,
            key=key,
            on_change=changed,
            width=100,
            help="Both texts are drawn with the same random numbers.",
        )
    return seed, longest, temperature


def _temperature() -> float:
    try:
        return min(max(float(param("temp") or 1.0), 0.0), 2.0)
    except ValueError:
        return 1.0


def _button(*, going: bool, possible: bool) -> None:
    if going:
        st.button("Stop", icon=":material/stop:", key="halt", on_click=set_param, args=("go", None))
        return
    st.button(
        "Generate",
        type="primary",
        icon=":material/play_arrow:",
        key="generate",
        disabled=not possible,
        on_click=set_param,
        args=("go", "1"),
    )
