"""Checks of a language model's own files, from its `config.json`, before its weights are loaded.

Used by `preflight` for local folders, and by `model` for those of the hub too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from sae_engine.errors import ConfigError
from sae_engine.files import read_json_object
from sae_engine.schema.config import ModelConfig


class Sizes(NamedTuple):
    """Sizes of a language model, or of the text part of a multimodal one; None if unknown."""

    num_layers: int | None
    width: int | None
    vocab: int | None
    positions: int | None


_SIZES = (
    ("num_hidden_layers", "n_layer"),
    ("hidden_size", "n_embd"),
    ("vocab_size",),
    ("max_position_embeddings", "n_positions"),
)


MAX_PARTS = 2_048
"""Of layers, experts or heads. Models have a few hundred; of a damaged number of them, transformers
would build parts without end.
"""
MAX_SIZE = 2**31
_COUNTED = re.compile(r"n(um)?_(\w+_)?(layers?|experts?|heads?)")


def sizes_of(config: ModelConfig, described: Mapping[str, Any]) -> Sizes:
    """The sizes in a `config.json`; raises `ConfigError` for one that no model has."""
    text = _part(described, "text_config") or described
    for name, value in [*described.items(), *text.items()]:
        if _COUNTED.fullmatch(name) and isinstance(value, int) and value > MAX_PARTS:
            raise _no_size(config, value, name)
    values = [next((text[name] for name in names if text.get(name)), None) for names in _SIZES]
    for value in values:
        if value is not None and not (isinstance(value, int) and 0 < value <= MAX_SIZE):
            raise _no_size(config, value, "a size")
    return Sizes(*values)


def _no_size(config: ModelConfig, value: object, of: str) -> ConfigError:
    what = f"The config.json of '{config.name}' gives {value!r:.50} as {of}"
    return ConfigError.of("model.name", f"{what}; download the file again.")


def check_description(
    config: ModelConfig, described: Mapping[str, Any], ctx_len: int | None = None
) -> None:
    """Raise `ConfigError` if a model with this `config.json` cannot be used, or not for rows of
    `ctx_len` tokens.
    """
    names = described.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    if described.get("is_encoder_decoder") or architecture.endswith("ForMaskedLM"):
        raise not_a_decoder(config.name)
    method = _part(described, "quantization_config").get("quant_method", "")
    method = str(getattr(method, "value", method))
    packages = _QUANTIZATION_PACKAGES.get(method, ())
    if missing := [name for name in packages if not find_spec(name.replace("-", "_"))]:
        raise ConfigError.of(
            "model.name",
            f"The weights of '{config.name}' are quantized with {method}, which needs the package "
            f"{' and '.join(missing)}: pip install {' '.join(missing)}, or use a model that is not "
            "quantized.",
        )
    positions = sizes_of(config, described).positions
    if ctx_len is not None and positions and ctx_len > positions:
        raise ConfigError.of(
            "data.ctx_len",
            f"{ctx_len:,} tokens exceed the {positions:,} positions of '{config.name}'; lower "
            "data.ctx_len.",
        )


# What transformers imports to read weights that are quantized by a method.
_QUANTIZATION_PACKAGES = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "gptq": ("optimum", "gptqmodel"),
    "hqq": ("hqq",),
    "quanto": ("optimum",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}


def check_special_ids(
    config: ModelConfig, ids: Mapping[str, int | None], vocab_size: int | None
) -> None:
    """Raise `ConfigError` for a special token, by its role, without an embedding."""
    for role, id_ in ids.items():
        if id_ is not None and vocab_size and id_ >= vocab_size:
            raise no_embedding(config, f"its {role} token has id {id_:,}", vocab_size)


def no_embedding(config: ModelConfig, what: str, vocab_size: int) -> ConfigError:
    return ConfigError.of(
        "model.name",
        f"The tokenizer of '{config.name}' does not fit the model: {what}, but the embedding has "
        f"ids 0 to {vocab_size - 1:,} only; use the tokenizer that the model was trained with.",
    )


def not_a_decoder(name: str) -> ConfigError:
    return ConfigError.of(
        "model.name",
        f"'{name}' does not predict each token from those before it; use a decoder-only language "
        "model, such as GPT-2, Llama or Gemma, not an encoder or an encoder-decoder.",
    )


def special_ids(folder: Path) -> dict[str, int | None]:
    """Ids of the BOS and eos tokens of a local model, according to its files."""
    try:
        named = read_json_object(folder / "tokenizer_config.json")
        added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
        by_text = {token["content"]: token["id"] for token in added}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}  # found when the tokenizer is loaded
    special: dict[str, int | None] = {}
    for role in ("bos", "eos"):
        token = named.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        special[role] = by_text.get(text)
    return special


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a local model has a chat template, according to its files."""
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(read_json_object(folder / "tokenizer_config.json").get("chat_template"))
    except (OSError, ValueError):
        return False


def _part(described: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = described.get(name)
    return part if isinstance(part, Mapping) else {}
