"""Where an SAE reads its model, by the names that other libraries give that place. No torch.

Read by `formats`, which finds the names in an SAE's files, and by `training` and the backend.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from sae_engine.schema.config import MAX_LAYER, ModelConfig

SAELENS_SITES = {
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
}
"""TransformerLens's names of our sites, after `blocks.<layer>.`."""
MODULE_SITES = {
    "mlp": "mlp_out",
    "post_feedforward_layernorm": "mlp_out",
    "self_attn": "attn_out",
    "attn": "attn_out",
    "post_attention_layernorm": "attn_out",
}
"""Our sites, by the part of a module's path after the layer number."""
ATTENTION_HEADS = (
    "it reads the concatenated outputs of the attention heads, so set model.hook_point to the "
    "output projection, such as 'model.layers.{layer}.self_attn.o_proj', and model.hook_io to "
    "'input'"
)
EMBEDDING = (
    "it reads the input of the first layer, so set model.hook_point to that layer, such as "
    "'model.layers.0' (GPT-2: 'transformer.h.0'), and model.hook_io to 'input'"
)
NO_SITE = (
    "it is not resid_post, mlp_out or attn_out, so set model.hook_point to the module that "
    "computes it"
)

_LAYER = r"(?:[a-z_]+\.)*(?:layers|blocks|h)\.(\d+)"
_OTHER_PARTS = "vision|visual|image|audio|encoder|speech"
"""In the paths of what is not the language part, which also has numbered layers."""
NO_LAYER = "its files do not give its layer, so set model.layer"


class Place(NamedTuple):
    """Where an SAE reads, according to its files, if this project has a name for it."""

    layer: int | None = None
    site: str | None = None
    """As in `ModelConfig.site`."""
    hook_point: str | None = None
    """The module, if the files name one inside a layer: more exact than `site`."""
    hook_io: Literal["output", "input"] = "output"
    name: str = ""
    """The place as the files name it; empty if they do not."""
    remedy: str = NO_SITE
    """For a place that `is_unnamed`: why, and what to do."""

    @property
    def is_named(self) -> bool:
        """Whether `settings` says where to read."""
        return self.hook_point is not None or None not in (self.layer, self.site)

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of `ModelConfig` that select this place; empty if none do."""
        if self.hook_point is not None:
            return {"hook_point": self.hook_point, "hook_io": self.hook_io}
        return {"layer": self.layer, "site": self.site} if self.is_named else {}


def layer_of(value: object) -> int | None:
    """A layer's number as an SAE's files give it; None for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_LAYER else None


def place_of(hook_name: object) -> Place:
    """The place called `blocks.12.hook_resid_post` by TransformerLens, or `model.layers.12`,
    `layers.12.mlp` or `model.layers.12.self_attn.o_proj.input` after its module.
    """
    name = str(hook_name or "").strip()
    if found := re.fullmatch(r"blocks\.(\d{1,4})\.(.+)", name):
        return _by_transformerlens(int(found[1]), found[2])._replace(name=name)
    if not name or name.startswith("hook_"):
        return Place(name=name)
    return _by_module(name)._replace(name=name)


def _by_transformerlens(layer: int, hook: str) -> Place:
    for site, theirs in SAELENS_SITES.items():
        if hook == theirs:
            return Place(layer, site)
    if hook == "hook_resid_pre":
        return Place(layer - 1, "resid_post") if layer else Place(0, remedy=EMBEDDING)
    if hook == "attn.hook_z":
        return Place(layer, remedy=ATTENTION_HEADS.format(layer=layer))
    return Place(layer)


def _by_module(name: str) -> Place:
    path = re.sub(r"\.(output|input)$", "", name)
    io: Literal["output", "input"] = "input" if name.endswith(".input") else "output"
    found = re.search(r"(?:^|\.)(\d{1,4})(?:\.(.+))?$", path)
    if found is None:
        return Place(hook_point=path, hook_io=io)
    layer, inside = int(found[1]), found[2]
    if inside is None and io == "output":
        return Place(layer, "resid_post")
    site = MODULE_SITES.get(inside or "") if io == "output" else None
    return Place(layer, site, path, io)


def same_module(path: str, other: str) -> bool:
    """Whether two paths name one module of a layer, whatever comes before the layer's number."""
    return _from_number(path) == _from_number(other)


def _from_number(path: str) -> str:
    found = re.search(r"\d+(\..*)?$", path)
    return found[0] if found else path.rpartition(".")[2]


def transformerlens_hook(model: ModelConfig) -> str | None:
    """TransformerLens's name of a hook point, such as `blocks.3.hook_resid_post`; None if it has
    none.
    """
    if not model.hook_point:
        return f"blocks.{model.layer}.{SAELENS_SITES[model.site]}"
    layer = re.fullmatch(_LAYER, model.hook_point)
    if layer is None or re.search(_OTHER_PARTS, model.hook_point):
        return None
    return f"blocks.{layer[1]}.hook_resid_{'pre' if model.hook_io == 'input' else 'post'}"


def hub_id(model_name: str) -> str:
    """The Hugging Face id of a model, from TransformerLens's name; unknown names stay."""
    if model_name in ("gpt2-small", "openai-community/gpt2"):
        return "gpt2"
    for start, owner in (("gemma-", "google"), ("pythia-", "EleutherAI")):
        if model_name.startswith(start):
            return f"{owner}/{model_name}"
    return model_name
