"""Checks of a configuration that need no loaded model and no torch.

Used by everything that accepts a configuration, so that mistakes are reported before a job starts,
and by `model` for the paths and checks that both need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sae_engine.errors import ConfigError, UserError
from sae_engine.files import looks_like_path, user_path
from sae_engine.hub import HubName, is_on_hub
from sae_engine.schema.config import DataConfig, ModelConfig, RunConfig
from sae_engine.text.notices import TextNotices
from sae_engine.text.sources import open_text_source

EMBEDDED_MODEL = "tiny-gemma2"


def model_path(config: ModelConfig) -> str:
    """Where the model is loaded from: the embedded folder, a local folder, or a hub id."""
    return str(embedded_model_folder()) if config.name == EMBEDDED_MODEL else config.name


def embedded_model_folder() -> Path:
    """The folder of the embedded model: in this package if a wheel was installed, else in the
    checkout.
    """
    package = Path(__file__).resolve().parent
    installed = package / "tiny_gemma2"
    return installed if installed.is_dir() else package.parent / "data" / "tiny_gemma2"


def check_config(config: RunConfig) -> None:
    """Raise `ConfigError` for mistakes that can be seen without loading the model."""
    _check_model(config)
    if config.sae.pretrained is not None:
        _check_pretrained(config.sae.pretrained)
    if config.data.activations is not None:
        activation_paths(config.data.activations)
        return
    check_text(config.data)
    if config.train.num_epochs is not None and open_text_source(config.data).is_unbounded:
        raise ConfigError.of(
            "train.num_epochs",
            f"'{config.data.dataset}' is streamed and its length is not known; give "
            "train.total_tokens, data.num_samples, or data.streaming = false.",
        )


def check_text(data: DataConfig) -> list[str]:
    """Read the beginning of the text; return what should be known about it, in sentences.

    Raises `ConfigError` if it cannot be used.
    """
    notices = TextNotices()
    open_text_source(data, notices).check()
    return notices.sentences


def check_layer(config: ModelConfig, num_layers: int) -> None:
    """Raise `ConfigError` for a hook point in a layer that a model of `num_layers` lacks."""
    layer = config.deepest_layer
    if layer is not None and layer >= num_layers:
        raise ConfigError.of(
            "model.hook_point" if config.hook_point else "model.layer",
            f"Layer {layer} does not exist; '{config.name}' has layers 0 to {num_layers - 1}.",
        )


def check_description(
    config: ModelConfig, described: Mapping[str, Any], ctx_len: int | None = None
) -> None:
    """Raise `ConfigError` if a model with this `config.json` cannot be used, or not for rows of
    `ctx_len` tokens.
    """
    architecture = (described.get("architectures") or [""])[0]
    if described.get("is_encoder_decoder") or architecture.endswith("ForMaskedLM"):
        raise not_a_decoder(config.name)
    method = (described.get("quantization_config") or {}).get("quant_method", "")
    method = getattr(method, "value", method)
    packages = _QUANTIZATION_PACKAGES.get(method, ())
    if missing := [name for name in packages if not find_spec(name.replace("-", "_"))]:
        raise ConfigError.of(
            "model.name",
            f"The weights of '{config.name}' are quantized with {method}, which needs the package "
            f"{' and '.join(missing)}: pip install {' '.join(missing)}, or use a model that is not "
            "quantized.",
        )
    text = described.get("text_config") or described
    positions = text.get("max_position_embeddings") or text.get("n_positions")
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


def activation_paths(path: Path | str) -> list[Path]:
    """The files of an activation set: the file itself, or a folder's, in order of their names."""
    path = user_path(path)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise _unusable_activations(f"The folder '{path}' holds no .safetensors file.")
        return files
    if path.suffix != ".safetensors":
        raise _unusable_activations(
            f"'{path}' is not a folder and its name does not end in .safetensors; activation files "
            "are .safetensors with a tensor 'activations' [tokens, d_in] "
            "(safetensors.torch.save_file writes them)."
        )
    if not path.exists():
        raise _unusable_activations(f"There is no file or folder '{path}'.")
    return [path]


def _unusable_activations(message: str) -> ConfigError:
    return ConfigError.of("data.activations", message)


def _check_pretrained(path: str) -> None:
    if is_on_hub(path):
        try:
            HubName.parse(path)
        except UserError as error:
            raise ConfigError.of("sae.pretrained", str(error)) from None
    elif not user_path(path).exists():
        raise ConfigError.of("sae.pretrained", f"There is no file or folder '{path}'.")


def _check_model(config: RunConfig) -> None:
    """Check a configuration against the files of a local model."""
    folder = user_path(model_path(config.model))
    if not folder.is_dir():
        if looks_like_path(config.model.name):
            raise ConfigError.of("model.name", f"There is no folder '{config.model.name}'.")
        return
    try:
        described = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise ConfigError.of(
            "model.name", f"The folder '{config.model.name}' holds no readable config.json."
        ) from None
    reads_text = config.data.activations is None
    check_description(config.model, described, config.data.ctx_len if reads_text else None)
    language = described.get("text_config") or described
    check_special_ids(config.model, _special_ids(folder), language.get("vocab_size"))
    if num_layers := language.get("num_hidden_layers") or language.get("n_layer"):
        check_layer(config.model, num_layers)
    width = language.get("hidden_size") or language.get("n_embd")
    if width and config.model.hook_point is None and config.sae.pretrained is None:
        try:
            config.sae.num_latents(width)
        except ValueError as error:
            raise ConfigError.of("sae.k", str(error)) from None


def _special_ids(folder: Path) -> dict[str, int | None]:
    """Ids of the BOS and eos tokens of a local model, as far as its files tell."""
    try:
        named = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
        by_text = {token["content"]: token["id"] for token in added}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # found when the tokenizer is loaded
    special: dict[str, int | None] = {}
    for role in ("bos", "eos"):
        token = named.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        special[role] = by_text.get(text)
    return special
