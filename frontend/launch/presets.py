"""The presets as cards, and the recipe that the URL names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from frontend.api.cache import client
from frontend.html.blocks import link
from frontend.html.format import counted, short_count, width_text
from frontend.html.tokens import escaped
from frontend.launch.drafts import Recipe
from frontend.shell.url import param
from sae_engine.schema.machine import Preset

DEFAULT_PRESET = "tiny"


def recipe_of(presets: Sequence[Preset]) -> Recipe:
    """The preset that the URL names, or the run that it clones."""
    wanted = param("preset") or DEFAULT_PRESET
    preset = next((p for p in presets if p.name == wanted), presets[0])
    base = preset.config.model_copy(update={"name": ""})
    clone = param("clone")
    if clone is None:
        return Recipe(preset.name, base, base)
    run = client().run(clone)
    return Recipe(preset.name, base, run.config.model_copy(update={"name": ""}), run)


def preset_cards(presets: Iterable[Preset], chosen: str | None) -> str:
    """All presets side by side, as HTML."""
    cards = "".join(_card(preset, preset.name == chosen) for preset in presets)
    return f'<div class="wb-presets">{cards}</div>'


def _card(preset: Preset, chosen: bool) -> str:
    sae, train = preset.config.sae, preset.config.train
    tokens = train.total_tokens
    facts = [
        width_text(sae),
        f"k {sae.k}",
        f"{short_count(tokens)} tokens" if tokens else counted(train.num_epochs or 1, "epoch"),
    ]
    body = (
        f"<strong>{escaped(preset.name)}</strong><span>{escaped(preset.description)}</span>"
        f"<small>{' · '.join(facts)}</small>"
    )
    css = "wb-preset on" if chosen else "wb-preset"
    return link("launch", body, {"preset": preset.name}, css=css)
