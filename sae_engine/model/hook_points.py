"""Where in a language model activations are read: from a configuration to a module's path.

Read by `language_model`. The architectures differ in how they name their layers, and in what adds
to the residual stream; all that is known about it is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from sae_engine.errors import ConfigError
from sae_engine.schema.config import ModelConfig


class HookPoint(NamedTuple):
    """A module of the base model, such as `layers.3`, and which side of it is read."""

    path: str
    io: Literal["output", "input"]


def text_config(config: Any) -> Any:
    """A model's language part (multimodal configurations nest it)."""
    return config.get_text_config()


def layers_needed(configs: Sequence[ModelConfig], num_layers: int) -> int | None:
    """How many decoder layers all the hook points need; None for all there are.

    Raises `ConfigError` for a layer beyond `num_layers`.
    """
    counts = [_layers_needed(config, num_layers) for config in configs]
    known = [count for count in counts if count is not None]
    return max(known) if len(known) == len(counts) else None


def _layers_needed(config: ModelConfig, num_layers: int) -> int | None:
    layer = config.deepest_layer
    if layer is None:
        return None
    if layer >= num_layers:
        field = "model.hook_point" if config.hook_point else "model.layer"
        raise ConfigError.of(
            field,
            f"Layer {layer} does not exist; '{config.name}' has layers 0 to {num_layers - 1}.",
        )
    return layer + 1


def truncate(config: Any, num_layers: int) -> None:
    """Make a model's configuration one of its first `num_layers` layers."""
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]


def find_hook_point(config: ModelConfig, model: Any) -> HookPoint:
    """The module that `config` names or means; raises `ConfigError` for one that is not there."""
    return HookPoint(_hook_path(config, model), config.hook_io)


def _hook_path(config: ModelConfig, model: Any) -> str:
    modules = dict(model.named_modules())
    if config.hook_point is not None:
        for prefix in ("model", "transformer", model.base_model_prefix):
            path = config.hook_point.removeprefix(f"{prefix}.") if prefix else config.hook_point
            if path in modules and path:
                return path
        raise ConfigError.of(
            "model.hook_point",
            f"'{config.hook_point}' is not a module of '{config.name}'; its top-level modules are "
            f"{', '.join(name for name, _ in model.named_children())}.",
        )
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
    # What is added to the residual stream: on Gemma-2 and later the sub-layer's output passes a
    # norm first.
    if f"{layer}.post_feedforward_layernorm" in modules:
        wanted = {
            "mlp_out": ["post_feedforward_layernorm"],
            "attn_out": ["post_attention_layernorm"],
        }
    else:
        wanted = {
            "mlp_out": ["mlp", "feed_forward"],
            "attn_out": ["self_attn", "attn", "attention"],
        }
    for child in wanted[config.site]:
        if f"{layer}.{child}" in modules:
            return f"{layer}.{child}"
    raise ConfigError.of(
        "model.site",
        f"'{config.name}' has no known {config.site}; name a module with model.hook_point.",
    )


@torch.inference_mode()
def in_running_order(model: nn.Module, points: Sequence[HookPoint], ids: torch.Tensor) -> list[int]:
    """The places of `points` in the order in which the model passes them, seen on `ids`.

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
