"""A language model's files become modules: its first layers, and later the layers that are missing.

Fed by the hub or a folder, through transformers; read by `language_model`. What goes wrong on the
way is said in one sentence with the remedy.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import safe_open
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from sae_engine.errors import ConfigError, UserError
from sae_engine.model.attention import EAGER, choose_attention
from sae_engine.model.hook_points import layers_needed, text_config, truncate
from sae_engine.preflight import EMBEDDED_MODEL, model_path
from sae_engine.schema.config import ModelConfig
from sae_engine.text.sources import is_connection_error

HUB_TIMEOUT_SECONDS = 5

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
_log = logging.getLogger(__name__)


class Prefix(NamedTuple):
    """The first layers of a model without its head, and its tokenizer."""

    model: Any
    tokenizer: Any


def load_prefix(configs: Sequence[ModelConfig], *, ctx_len: int | None = None) -> Prefix:
    """Load the layers up to the deepest hook of `configs`, all of one model, without the head.

    Where many rows of `ctx_len` tokens will be read on a GPU, it computes with the attention that
    is fastest for them, which may compile for each length; see `attention`.

    Raises `UserError` in one sentence when the model cannot be had, `ConfigError` for a layer that
    it does not have.
    """
    config = configs[0]
    name = model_path(config)
    with _loading(config.name):
        _ask_hub(name)
        hf_config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"The tokenizer of '{config.name}' has no fast (tokenizers) version, which is needed."
        )
    num_layers = layers_needed(configs, text_config(hf_config).num_hidden_layers)
    if num_layers is not None:
        truncate(text_config(hf_config), num_layers)
    device = resolve_device(config)
    dtype = resolve_dtype(config, device)
    attention = EAGER if ctx_len is None else choose_attention(hf_config, ctx_len, dtype, device)
    with _loading(config.name):
        model, report = AutoModel.from_pretrained(
            name,
            config=hf_config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            device_map=config.device_map or device,
            output_loading_info=True,
        )
    _refuse_missing(config.name, report)
    return Prefix(model.eval().requires_grad_(False), tokenizer)


def load_rest(config: ModelConfig, prefix: nn.Module) -> Any:
    """The whole model with its head: `prefix`'s tensors, and what it lacks from the files.

    Only the missing layers (and the head, where it is not the embedding) take memory. Spread over
    devices with `device_map`, the whole model is loaded anew instead, placed where there is room.
    """
    name = model_path(config)
    with _loading(config.name), ExitStack() as stack:
        hf_config = AutoConfig.from_pretrained(name)
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(hf_config)]
        tensors: dict[str, Any] | None = None
        if config.device_map is None:
            have = prefix.state_dict()
            tensors = {}
            for path in _weight_files(name):
                file = stack.enter_context(safe_open(path, "pt"))
                for key in file.keys():  # noqa: SIM118 - it is no dict
                    inner = key.removeprefix(f"{model_class.base_model_prefix}.")
                    # A slice is read when transformers puts it into its place; a tensor that is
                    # there already, in the same format and on the same device, is not copied.
                    tensors[key] = have[inner] if inner in have else file.get_slice(key)
        parameter = next(prefix.parameters())
        model, report = model_class.from_pretrained(
            name if tensors is None else None,
            config=hf_config,
            state_dict=tensors,
            dtype=parameter.dtype,
            attn_implementation=EAGER,
            use_safetensors=True,
            device_map=config.device_map or parameter.device,
            output_loading_info=True,
        )
    _refuse_missing(config.name, report)
    return model.eval().requires_grad_(False)


def _weight_files(name: str) -> Sequence[str]:
    """The safetensors files of a model, from its folder or the hub's cache."""
    single = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if single is not None:
        return [single]
    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME)
    return get_checkpoint_shard_files(name, index)[0] or []


def _refuse_missing(name: str, report: dict[str, Any]) -> None:
    """Tensors that the files lack would be random numbers."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"The files of '{name}' lack {len(missing)} of its tensors, such as {missing[0]}; "
            f"download or save the model again."
        )


def resolve_device(config: ModelConfig) -> torch.device:
    """The device a run works on; raises `ConfigError` for a GPU that is not there."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(config.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError.of(
            "model.device",
            f"'{config.device}' does not exist; {torch.cuda.device_count()} CUDA devices were "
            f"found. Use cpu or auto.",
        )
    return device


def resolve_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


@contextmanager
def _loading(name: str) -> Generator[None]:
    """Turn what the hub and the file system answer into one sentence with the remedy."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if not (isinstance(error, ValueError | KeyError) or is_connection_error(error)):
            raise
        _log.warning("loading %s failed", name, exc_info=True)
        raise UserError(_why_not_loaded(name, error)) from error


def _ask_hub(name: str) -> None:
    """Ask once about a model that is not here.

    The downloader would try an unreachable hub for long.
    """
    if Path(name).expanduser().is_dir() or is_offline_mode():
        return
    if try_to_load_from_cache(name, "config.json") is None:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS)


def _why_not_loaded(name: str, error: BaseException) -> str:
    if Path(name).expanduser().is_dir():
        return f"The folder '{name}' does not hold a complete model: {error}"
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(e) for e in causes)
    if any(isinstance(e, GatedRepoError) for e in causes) or "access a gated repo." in text:
        return (
            f"'{name}' is gated: accept its license on its Hugging Face page and set HF_TOKEN to a "
            "token of that account."
        )
    missing = any(isinstance(e, RepositoryNotFoundError) for e in causes)
    if missing or "not a valid model identifier" in text:
        return (
            f"There is no model '{name}' on the Hugging Face hub (or it is private and HF_TOKEN is "
            f"not set), and no such folder here. The embedded model is '{EMBEDDED_MODEL}'."
        )
    remedy = f"check the network, or use a local folder or the embedded '{EMBEDDED_MODEL}'."
    if is_offline_mode():
        return f"'{name}' is not in the local cache and HF_HUB_OFFLINE is set; {remedy}"
    unreachable = any(
        isinstance(e, LocalEntryNotFoundError)
        or (is_connection_error(e) and not isinstance(e, FileNotFoundError))
        for e in causes
        if type(e) is not OSError  # what transformers raises for everything
    )
    if unreachable or "connect" in text.lower():
        return f"'{name}' is not cached and the Hugging Face hub cannot be reached; {remedy}"
    return f"The model '{name}' could not be loaded: {error}"
