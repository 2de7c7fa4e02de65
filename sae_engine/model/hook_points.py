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
    language.num_hidden_layers = num_layers
    if getattr(language, "layer_types", None):
        language.layer_types = language.layer_types[:num_layers]


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


def _site_path(config: ModelConfig, model: Any, modules: dict[str, nn.Module]) -> str:
    """The path of the module whose output is `site` of `layer`."""
    num_layers = text_config(model.config).num_hidden_layers
    stacks = [
        n for n, m in modules.items() if isinstance(m, nn.ModuleList) and len(m) == num_layers
    ]
    if not stacks:
        raise ConfigError.of(
            "model.site",
            f"The layers of '{config.name}' were not found; name a module with model.hook_point.",
        )
    layer = f"{stacks[0]}.{config.layer}"
    if config.site == "resid_post":
        return layer
    # On Gemma-2 and later, a sub-layer's output passes a norm before it is added to the residual
    # stream.
    if f"{layer}.post_feedforward_layernorm" in modules:
        names = {
            "mlp_out": ["post_feedforward_layernorm"],
            "attn_out": ["post_attention_layernorm"],
        }
    else:
        names = {
            "mlp_out": ["mlp", "feed_forward"],
            "attn_out": ["self_attn", "attn", "attention"],
        }
    for name in names[config.site]:
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
