"""The panel that continues a prompt, plain beside steered; its state is in the address."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from frontend.api.cache import client, feature_row, num_features
from frontend.api.client import ApiProblem
from frontend.features.steering_example import (
    PROMPT,
    Example,
    convincing,
    examples,
)
from frontend.features.token_chips import (
    MAX_STRENGTH,
    STRENGTH,
    strengths_text,
    wrong_strengths,
)
from frontend.html.blocks import feature_link, html_block, panel_title, section_title, show_linked
from frontend.html.format import number
from frontend.html.marks import mark, named
from frontend.html.tokens import chip, escaped
from frontend.shell.limits import out_of_bounds, say_wrong
from frontend.shell.problems import show_problem
from frontend.shell.progress import phase_line
from frontend.shell.url import (
    LARGEST_IN_A_BOX,
    bound,
    bound_number,
    limited,
    number_param,
    param,
    set_param,
)
from sae_engine.schema.features import FeatureRow
from sae_engine.schema.playground import Side, SteerPhase, SteerResult
from sae_engine.schema.runs import Run

MAX_PROMPT = 4000
"""Limited by the length of a URL."""
PROMPT_HEIGHT = 110
"""Of three lines."""
MAX_NEW_TOKENS = 200
NEW_TOKENS, TEMPERATURE, SEED = 40, 0.5, 0
"""Small models stay readable at this temperature."""
TITLES: dict[Side, str] = {"plain": "Plain", "steered": "Steered"}


class Question(NamedTuple):
    """Everything that decides the two texts."""

    run_id: str
    step: int
    strengths: str
    prompt: str
    max_new_tokens: int
    temperature: float
    seed: int


def steering(run: Run, step: int, strengths: Mapping[int, float]) -> None:
    """The panel; it generates when `go` is set in the URL."""
    section_title("Steering")
    left, right = st.columns([1, 1.15], gap="large")
    with left:
        say_wrong(wrong_strengths(param("steer") or ""))
        for index, strength in strengths.items():
            _feature(run, step, index, strength, strengths)
        _add_feature(run, step, strengths)
        prompt, sampling = _prompt(), _sampling()
        question = Question(run.id, step, strengths_text(strengths), prompt or "", *sampling.used)
        held: tuple[Question, SteerResult] | None = st.session_state.get("steered")
        result = held[1] if held is not None and held[0] == question else None
        possible = bool(question.prompt and strengths) and not sampling.is_wrong
        going = possible and param("go") == "1" and result is None
        with st.container(horizontal=True, gap="small"):
            _button(going=going, possible=possible)
            wants_example = _example_button(possible=not sampling.is_wrong)
    with right:
        if wants_example:
            _show_example(run, step, strengths, sampling)
            return
        if result is not None:
            html_block(_texts(question.prompt, {"plain": result.plain, "steered": result.steered}))
            return
        if not going:
            html_block(f'<p class="wb-muted">{_next_step(question.prompt, strengths)}</p>')
            return
        answer = _generate(question, strengths, st.empty())
    if answer is not None:
        st.session_state["steered"] = (question, answer)
        st.rerun()


def _next_step(prompt: str, strengths: Mapping[int, float]) -> str:
    if not strengths:
        return "Click steer beside a feature above, or add one by its index."
    return "Press Generate." if prompt else "Write a prompt and press Generate."


def _example_button(*, possible: bool) -> bool:
    return st.button(
        "Try an example",
        icon=":material/lightbulb:",
        key="steer-example",
        type="tertiary",
        help="Looks for a feature whose word appears more often in the steered text",
        disabled=not possible,
    )


def _show_example(run: Run, step: int, strengths: Mapping[int, float], sampling: Sampling) -> None:
    """Generate with one example after another, shown as they grow, until one is convincing."""
    trying, place = st.empty(), st.empty()

    def question(example: Example) -> Question:
        steer = strengths_text({example.feature: STRENGTH})
        return Question(run.id, step, steer, PROMPT, *sampling.used)

    def answer(example: Example) -> SteerResult | None:
        trying.html(phase_line(f"trying feature {example.feature} ({example.word})"))
        return _generate(question(example), {example.feature: STRENGTH}, place)

    try:
        candidates = examples(run.id, step)
    except ApiProblem as error:
        show_problem(error)
        return
    if not candidates:
        html_block('<p class="wb-muted">No feature has a word for its top token.</p>')
    found = convincing(candidates, list(strengths), answer)
    if found is None:
        return
    example, result = found
    asked = question(example)
    st.session_state["steered"] = (asked, result)
    set_param("prompt", asked.prompt)
    set_param("steer", asked.strengths)
    set_param("go", "1")
    st.rerun()


def _generate(
    question: Question, strengths: Mapping[int, float], place: DeltaGenerator
) -> SteerResult | None:
    """Show both texts in a place as they grow; None after a problem, which is shown."""
    texts: dict[Side, str] = {"plain": "", "steered": ""}
    stream = client().steer(
        question.run_id,
        question.prompt,
        strengths,
        max_new_tokens=question.max_new_tokens,
        seed=question.seed,
        temperature=question.temperature,
        snapshot=question.step,
    )
    try:
        while True:
            part = next(stream)
            if isinstance(part, SteerPhase):
                if not any(texts.values()):
                    place.html(phase_line(part.phase))
            else:
                texts[part.side] += part.text
                place.html(_texts(question.prompt, texts))
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
        f'<div>{panel_title(TITLES[side])}<div class="wb-generated {side}">'
        f"<i>{_lines(prompt)}</i>{_lines(text)}</div></div>"
        for side, text in texts.items()
    )
    return f'<div class="wb-two">{columns}</div>'


def _lines(text: str) -> str:
    return escaped(text).replace("↵", "↵<br>")


def _steer_with(strengths: Mapping[int, float]) -> None:
    """Change the steered features; generating needs another press of Generate."""
    set_param("steer", strengths_text(strengths))
    set_param("go", None)


def _add_feature(run: Run, step: int, strengths: Mapping[int, float]) -> None:
    last = num_features(run.id, step) - 1

    def add() -> None:
        index = st.session_state["steer-add"]
        if index is None or problem(index):
            return
        if index not in strengths:
            _steer_with({**strengths, index: STRENGTH})
        st.session_state["steer-add"] = None

    def problem(index: int | None) -> str:
        return "" if index is None else out_of_bounds(title, str(index), 0, last)

    title = "The index"
    typed = st.number_input(
        "Add a feature",
        value=None,
        step=1,
        key="steer-add",
        on_change=add,
        placeholder=f"index, 0 to {last}",
        width=220,
    )
    say_wrong(problem(typed))


def _feature(
    run: Run, step: int, index: int, strength: float, strengths: Mapping[int, float]
) -> None:
    key = f"strength:{index}"
    st.session_state[key] = strength
    rest = {i: s for i, s in strengths.items() if i != index}
    row = feature_row(run.id, step, index)
    name, slider, button = st.columns([1.3, 2.4, 0.35], vertical_alignment="center")
    with name:
        known = "does not exist" if row is None else f"max {number(row.max_activation)}"
        name_html = "" if row is None else _name(row)
        title = feature_link(
            run.id,
            index,
            snapshot=param("snapshot"),
            label_html=f"Feature {index}",
            css="wb-index",
        )
        show_linked(
            f'{title}{name_html}<span class="wb-sub">{known}</span>',
            key=f"steered:{index}",
        )
    with slider:
        st.slider(
            f"Strength of feature {index}",
            -MAX_STRENGTH,
            MAX_STRENGTH,
            step=0.25,
            key=key,
            on_change=lambda: _steer_with({**strengths, index: st.session_state[key]}),
            format="%.2f × max",
            label_visibility="collapsed",
        )
    with button:
        st.button(
            "",
            icon=":material/close:",
            key=f"unsteer:{index}",
            help="Remove",
            on_click=lambda: _steer_with(rest),
        )


def _name(row: FeatureRow) -> str:
    """What a feature is about: its label, its provisional name, or else its top token."""
    token = chip(row.top_tokens[0]) if row.top_tokens else ""
    parts = (mark(None, starred=row.starred), named(row) or token)
    return "".join(f" · {part}" for part in parts if part)


def _setting(name: str, value: object, default: object = None) -> tuple[str, Callable[[], None]]:
    """A widget tied to the URL; after a change, generating needs another press of Generate."""
    return bound(name, value, default=default, clears=("go",))


def _prompt() -> str | None:
    """The prompt, by default the text above; None if it is too long, which is said below it."""
    text = param("prompt") or param("text") or ""
    key, write, problem = limited("Prompt", "prompt", text, MAX_PROMPT, clears=("go",))
    st.text_area("Prompt", key=key, on_change=write, height=PROMPT_HEIGHT, placeholder="import ")
    say_wrong(problem)
    return None if problem else text


class Sampling(NamedTuple):
    """Number of new tokens, temperature and seed."""

    used: tuple[int, float, int]
    is_wrong: bool
    """Whether the address holds another one, which is out of bounds."""


def _sampling() -> Sampling:
    length = number_param("max", "New tokens", 1, MAX_NEW_TOKENS, default=NEW_TOKENS)
    warmth = number_param("temp", "Temperature", 0, 2, default=TEMPERATURE, whole=False)
    num_tokens = NEW_TOKENS if length.value is None else int(length.value)
    temperature = TEMPERATURE if warmth.value is None else float(warmth.value)
    with st.container(horizontal=True, gap="medium"):
        key, write = _setting("max", num_tokens, NEW_TOKENS)
        st.slider("New tokens", 1, MAX_NEW_TOKENS, key=key, on_change=write, width=165)
        key, write = _setting("temp", temperature, TEMPERATURE)
        tip = "0 always picks the most likely token."
        st.slider("Temperature", 0.0, 2.0, step=0.1, key=key, on_change=write, width=165, help=tip)
        tip = "Both texts are sampled with the same random numbers."
        seed = bound_number(
            "Seed",
            "seed",
            0,
            LARGEST_IN_A_BOX,
            default=SEED,
            clears=("go",),
            tip=tip,
            width=100,
        )
    say_wrong(length.problem)
    say_wrong(warmth.problem)
    is_wrong = bool(length.problem or warmth.problem or seed.problem)
    return Sampling((num_tokens, temperature, int(seed.value or 0)), is_wrong)


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
