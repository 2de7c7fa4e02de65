"""Where activations are read in a language model: from a configuration to a module's path.

Architectures name their layers, and what adds to the residual stream, differently; everything known
about that is here. Read by `language_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from sae_engine.errors import ConfigError
from sae_engine.preflight import check_layer
from sae_engine.schema.config import ModelConfig


class HookPoint(NamedTuple):
    """A module of the base model, such as `layers.3`, and which side of it is read."""

    path: str
    io: Literal["output", "input"]


def text_config(config: Any) -> Any:
    """The language part of a model's configuration, which multimodal models nest."""
    return config.get_text_config()


def max_positions(config: Any) -> int | None:
    """The number of positions that a model was made for; None if its configuration names none."""
    return getattr(text_config(config), "max_position_embeddings", None)


def layers_needed(configs: Sequence[ModelConfig], num_layers: int) -> int:
    """How many of a model's `num_layers` decoder layers the hook points need.

    Raises `ConfigError` for a layer that the model lacks.
    """
    needed = 0
    for config in configs:
        check_layer(config, num_layers)
        layer = config.deepest_layer
        needed = max(needed, num_layers if layer is None else layer + 1)
    return needed


def truncate(config: Any, num_layers: int) -> None:
    """Reduce a model's configuration, in place, to the first `num_layers` layers."""
    language = text_config(config)
    total = language.num_hidden_layers
    language.num_hidden_layers = num_layers
    for name, value in list(vars(language).items()):
        if isinstance(value, list) and len(value) == total:  # one entry per layer
            setattr(language, name, value[:num_layers])


def find_hook_point(config: ModelConfig, model: Any) -> HookPoint:
    """The module that `config` names or means; raises `ConfigError` if the model lacks it."""
    modules = dict(model.named_modules())
    if config.hook_point is not None:
        path = _named_path(config, model, modules.keys() - {""})
    else:
        path = _site_path(config, model, modules)
    return HookPoint(path, config.hook_io)


def _named_path(config: ModelConfig, model: Any, paths: set[str]) -> str:
    """The path in the base model of `hook_point`, a path in the base or in the whole model."""
    assert config.hook_point is not None
    for prefix in ("model", "transformer", model.base_model_prefix):
        path = config.hook_point.removeprefix(f"{prefix}.") if prefix else config.hook_point
        if path in paths:
            return path
    raise ConfigError.of(
        "model.hook_point",
        f"'{config.hook_point}' is not a module of '{config.name}'; its top-level modules are "
        f"{', '.join(name for name, _ in model.named_children())}.",
    )


def layer_stack(model: Any) -> str | None:
    """The path in the base model of the language part's list of decoder layers."""
    num_layers = text_config(model.config).num_hidden_layers
    tower = model.get_decoder()  # of a multimodal model, the part that reads text
    inside = {id(module) for module in tower.modules()}
    stacks = (
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and id(module) in inside
    )
    return next(stacks, None)


# The module whose output is added to the residual stream: the first of these that a layer has.
# On Gemma-2, OLMo-2 and GLM-4, a sub-layer's output passes a norm before.
_ADDED = {
    "mlp_out": (
        "post_mlp_layernorm",
        "post_feedforward_layernorm",
        "mlp",
        "feed_forward",
        "mlp_block",
    ),
    "attn_out": (
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "self_attn",
        "attn",
        "attention",
        "self_attention",
        "temporal_block",
    ),
}
_BLOOM = "bloom"
"""Its sub-layers add the residual stream to their output themselves."""


def _site_path(config: ModelConfig, model: Any, modules: dict[str, nn.Module]) -> str:
    """The path of the module whose output is `site` of `layer`."""
    stack = layer_stack(model)
    if stack is None:
        raise ConfigError.of(
            "model.site",
            f"The layers of '{config.name}' were not found; name a module with model.hook_point.",
        )
    layer = f"{stack}.{config.layer}"
    if config.site == "resid_post":
        return layer
    names: Sequence[str] = _ADDED[config.site]
    if text_config(model.config).model_type == _BLOOM:
        names = ()
    elif f"{layer}.post_feedforward_layernorm" not in modules:
        # Elsewhere the norm of this name is what the MLP reads.
        names = [name for name in names if name != "post_attention_layernorm"]
    for name in names:
        if f"{layer}.{name}" in modules:
            return f"{layer}.{name}"
    raise ConfigError.of(
        "model.site",
        f"'{config.name}' has no known {config.site}; name a module with model.hook_point.",
    )


@torch.inference_mode()
def in_running_order(model: nn.Module, points: Sequence[HookPoint], ids: torch.Tensor) -> list[int]:
    """Indices of `points` in the order in which the model runs them on `ids`.

    Raises `ConfigError` for a module that the model does not run.
    """
    passed: list[HookPoint] = []
    handles: list[Any] = []
    for point in points:
        module = model.get_submodule(point.path)
        register = (
            module.register_forward_hook
            if point.io == "output"
            else module.register_forward_pre_hook
        )
        handles.append(register(lambda *_, point=point: passed.append(point)))
    try:
        model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for point in points:
        if point not in passed:
            raise ConfigError.of(
                "model.hook_point", f"'{point.path}' is a module that the model does not run."
            )
    return sorted(range(len(points)), key=lambda i: passed.index(points[i]))
