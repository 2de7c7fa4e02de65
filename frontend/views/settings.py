"""Settings of a run: all of them, how to repeat the run, and what it was started with."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from frontend.api.cache import cached_presets, client
from frontend.html.blocks import html_block, notice, panel_title, show_linked
from frontend.html.tokens import escaped
from frontend.launch.forms import as_command, as_import_command, as_yaml
from frontend.runs.settings import (
    Setting,
    environment_list,
    nearest_preset,
    settings_of,
    settings_table,
)
from frontend.shell.run_page import open_run
from frontend.shell.url import bound_text, bound_toggle, param
from sae_engine.schema.fields import Tree, changed_from, values_of
from sae_engine.schema.machine import Preset
from sae_engine.schema.runs import Run


def show() -> None:
    """The page."""
    run = open_run("settings", search=True)
    preset = nearest_preset(run.config, cached_presets())
    left, right = st.columns([1.5, 1], gap="large")
    with left:
        is_imported = run.config.sae.pretrained is not None
        _settings(settings_of(run, preset), preset.name, counts_changes=not is_imported)
    with right:
        _repeat(run, preset)
        _environment(run)


def _settings(settings: Sequence[Setting], preset: str, *, counts_changes: bool) -> None:
    num_changed = sum(setting.differs for setting in settings)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        hint = "Name, value or help, such as lr"
        bound_text("Filter settings", "q", param("q") or "", placeholder=hint, search=True)
        only_changed = bound_toggle("Only changed", "changed")
    found = [
        setting
        for setting in settings
        if setting.matches(param("q") or "") and (setting.differs or not only_changed)
    ]
    if counts_changes:
        html_block(
            f'<p class="wb-muted">{_summary(num_changed, len(settings), escaped(preset))}</p>'
        )
    if found:
        show_linked(settings_table(found, preset), key="settings-table")
    else:
        html_block(notice("No setting matches."))


def _summary(num_changed: int, num_settings: int, preset: str) -> str:
    name = f"<code>{preset}</code>"
    if not num_changed:
        return f"All {num_settings} settings match the preset {name}."
    differ = "differs" if num_changed == 1 else "differ"
    return f"{num_changed} of {num_settings} settings {differ} from {name}, the closest preset."


def _repeat(run: Run, preset: Preset) -> None:
    html_block(panel_title("Repeat this run"))
    command, file = st.tabs(["Command", "YAML"])
    with command:
        st.code(_command(run, preset), "bash", wrap_lines=True)
    with file:
        st.code(as_yaml(_config(run)), "yaml", height=300)


def _config(run: Run) -> Tree:
    """Without the size of an imported SAE, which it has by itself."""
    config = run.config.model_dump(mode="json")
    if run.config.sae.pretrained is not None:
        config["sae"] |= {"d_sae": None, "k": None}
    return config


def _command(run: Run, preset: Preset) -> str:
    if run.config.sae.pretrained is not None:
        return as_import_command(run)
    changes = changed_from(preset.config, values_of(run.config) | {"name": preset.config.name})
    return as_command(preset.name, changes)


def _environment(run: Run) -> None:
    html_block(panel_title("Started with"))
    found = client().environment(run.id)
    if found is None:
        waits = "Recorded when the run starts." if run.status == "queued" else "Not recorded."
        html_block(notice(waits))
        return
    html_block(environment_list(found))


if __name__ == "__main__":
    show()
