"""Loads a language model from its files: first the layers needed, later the head or the rest.

Fed by the hub or a folder, through transformers; read by `language_model`. What goes wrong on the
way is reported in one sentence with its remedy.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
)
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from sae_engine import hub
from sae_engine.errors import ConfigError, UserError
from sae_engine.files import user_path
from sae_engine.interrupt import CheckStop, Interruption, call_interruptibly, never_stop
from sae_engine.model.attention import EAGER, choose_attention
from sae_engine.model.choices import causal_class, check_tokenizer, first_layers
from sae_engine.model.hook_points import layers_needed, text_config, truncate
from sae_engine.model_files import check_description
from sae_engine.preflight import MODEL_REMEDY as REMEDY
from sae_engine.preflight import model_path
from sae_engine.schema.config import ModelConfig

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
_log = logging.getLogger(__name__)


MAX_REASON_CHARS = 300
"""Of a library's message in ours."""


class Prefix(NamedTuple):
    """The first layers of a model without its head, and its tokenizer."""

    model: Any
    tokenizer: Any
    is_whole: bool
    """All layers were loaded although fewer are read."""


def load_prefix(
    configs: Sequence[ModelConfig],
    *,
    ctx_len: int | None = None,
    check_stop: CheckStop = never_stop,
) -> Prefix:
    """Load the layers up to the deepest hook of `configs`, all of one model, without the head.

    Give `ctx_len` if many rows of that many tokens will be read; on a GPU they are then computed
    with the fastest attention, which may compile for each length (see `attention`). `check_stop` is
    called during downloads and between the steps of loading.

    Raises `UserError` if the model cannot be loaded, `ConfigError` for a layer that it lacks.
    """
    config = configs[0]
    name = model_path(config)
    with _one_sentence_errors(config.name):
        hf_config, tokenizer = call_interruptibly(lambda: _config_and_tokenizer(name), check_stop)
        call_interruptibly(lambda: _weight_files(name), check_stop)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"The tokenizer of '{config.name}' has no fast (tokenizers) version, which is needed."
        )
    check_description(config, hf_config.to_dict(), ctx_len)
    causal_class(config.name, hf_config)
    check_tokenizer(config, tokenizer, text_config(hf_config).vocab_size)
    num_layers = layers_needed(configs, text_config(hf_config).num_hidden_layers)
    hf_config = first_layers(hf_config, num_layers)
    device = resolve_device(config)
    dtype = resolve_dtype(config, device)
    attention = EAGER if ctx_len is None else choose_attention(hf_config, ctx_len, dtype, device)
    check_stop()
    with _one_sentence_errors(config.name):
        model, report = AutoModel.from_pretrained(
            name,
            config=hf_config,
            trust_remote_code=False,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            device_map=config.device_map or device,
            output_loading_info=True,
        )
    _require_all_tensors(config.name, report)
    is_whole = text_config(hf_config).num_hidden_layers > num_layers
    return Prefix(model.eval().requires_grad_(False), tokenizer, is_whole)


def load_whole(config: ModelConfig, prefix: nn.Module) -> Any:
    """The whole model with its head: `prefix`'s own tensors, and the missing ones from the files.

    Only the missing layers (and the head, unless it is the embedding) take memory. With
    `device_map` or quantized weights, the whole model is loaded again instead, placed where there
    is room.
    """
    return _load_causal_lm(config, prefix, num_layers=None)


def load_head(config: ModelConfig, prefix: Any) -> Any:
    """A causal language model of `prefix`'s layers only, with the final norm and the head of the
    whole model.
    """
    return _load_causal_lm(config, prefix, text_config(prefix.config).num_hidden_layers)


def check_complete(config: ModelConfig) -> None:
    """Raise `UserError` if the files lack a tensor of the whole model. Only their headers are
    read; of quantized weights, nothing.
    """
    name = model_path(config)
    with _one_sentence_errors(config.name), ExitStack() as stack:
        hf_config = _described(name)
        if is_quantized(hf_config):
            return
        tensors = {
            key: torch.empty(file.get_slice(key).get_shape(), device="meta")
            for file in _opened(name, stack)
            for key in file.keys()  # noqa: SIM118 - not a dict
        }
        _, report = causal_class(config.name, hf_config).from_pretrained(
            None,
            config=hf_config,
            state_dict=tensors,
            device_map="meta",
            output_loading_info=True,
        )
    _require_all_tensors(config.name, report)


def is_quantized(hf_config: Any) -> bool:
    return getattr(hf_config, "quantization_config", None) is not None


def _opened(name: str, stack: ExitStack) -> Generator[Any]:
    """The safetensors files of a model, open until `stack` closes."""
    for path in _weight_files(name):
        yield stack.enter_context(safe_open(path, "pt"))


def _load_causal_lm(config: ModelConfig, prefix: nn.Module, num_layers: int | None) -> Any:
    name = model_path(config)
    with _one_sentence_errors(config.name), ExitStack() as stack:
        hf_config = _described(name)
        if num_layers is not None:
            truncate(hf_config, num_layers)
        model_class = causal_class(config.name, hf_config)
        tensors: dict[str, Any] | None = None
        if config.device_map is None and not is_quantized(hf_config):
            have = prefix.state_dict()
            tensors = {}
            for file in _opened(name, stack):
                for key in file.keys():  # noqa: SIM118 - not a dict
                    inner = key.removeprefix(f"{model_class.base_model_prefix}.")
                    # transformers reads a slice when it fills that tensor, and does not copy a
                    # tensor that already has the right format and device.
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
    _require_all_tensors(config.name, report)
    return model.eval().requires_grad_(False)


def vocab_size(config: ModelConfig, check_stop: CheckStop = never_stop) -> int:
    """The number of token ids, from the model's configuration alone; raises `UserError`."""
    name = model_path(config)
    with _one_sentence_errors(config.name):
        hf_config, _ = call_interruptibly(lambda: _config_and_tokenizer(name), check_stop)
    return text_config(hf_config).vocab_size


def _config_and_tokenizer(name: str) -> tuple[Any, Any]:
    # One question with a short timeout, because the downloader retries for much longer.
    is_local = user_path(name).is_dir() or is_offline_mode()
    if not is_local and try_to_load_from_cache(name, "config.json") is None:
        HfApi().model_info(name, timeout=hub.TIMEOUT_SECONDS)
    return _described(name), AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _described(name: str) -> Any:
    """The configuration of a model. Unless told not to run the model's own code, transformers asks
    in the terminal.
    """
    return AutoConfig.from_pretrained(name, trust_remote_code=False)


def _weight_files(name: str) -> Sequence[str]:
    """The safetensors files of a model, in its folder or downloaded to the hub's cache."""
    single = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if single is not None:
        return [single]
    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    return [] if index is None else get_checkpoint_shard_files(name, index)[0] or []


def _require_all_tensors(name: str, report: dict[str, Any]) -> None:
    """Raise `UserError` for tensors missing from the files, which would be random numbers."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"The files of '{name}' lack {len(missing)} of its tensors, such as {missing[0]}; "
            "download or save the model again."
        )


def resolve_device(config: ModelConfig) -> torch.device:
    """The device that a run uses; raises `ConfigError` for a GPU that does not exist."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(config.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError.of(
            "model.device",
            f"'{config.device}' does not exist; {torch.cuda.device_count()} CUDA devices were "
            "found. Use cpu or auto.",
        )
    return device


def resolve_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


@contextmanager
def _one_sentence_errors(name: str) -> Generator[None]:
    """Turn errors of the hub and the file system, and whatever the damaged files of a local model
    cause, into a `UserError` with the remedy.
    """
    try:
        with hub.room_for_downloads():
            yield
    except (UserError, Interruption, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        is_expected = isinstance(error, OSError | ValueError | KeyError | ImportError)
        is_local = user_path(name).is_dir()
        if not (is_expected or is_local or hub.is_connection_error(error)):
            raise
        _log.warning("loading %s failed", name, exc_info=True)
        raise _loading_error(name, error) from error


def unusable(name: str, doing: str, error: Exception) -> UserError:
    """The error for a model that is loaded, but fails at what an SAE needs."""
    _log.warning("%s of %s failed", doing, name, exc_info=error)
    return UserError(
        f"'{name}' cannot be used here: {doing} failed on a few tokens ({type(error).__name__}; "
        "the log has the details). docs/architectures.md lists the models that work."
    )


def _reason(error: BaseException) -> str:
    """The kind of error, and the beginning of what a library says about it."""
    said = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {said[:MAX_REASON_CHARS]}".rstrip(": ")


def _loading_error(name: str, error: BaseException) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(
            f"'{name}' needs code from its own files, which is never run; use a model whose "
            "architecture is part of transformers."
        )
    if user_path(name).is_dir():
        return UserError(f"The folder '{name}' does not hold a complete model ({_reason(error)}).")
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(e) for e in causes)
    if any(isinstance(e, GatedRepoError) for e in causes) or "access a gated repo." in text:
        return hub.gated("model", name)
    missing = any(isinstance(e, RepositoryNotFoundError) for e in causes)
    if missing or "not a valid model identifier" in text:
        return hub.not_found("model", name, f"check the name, or {REMEDY}")
    if is_offline_mode():
        return hub.offline("model", name, REMEDY)
    if any(map(hub.is_connection_error, causes)) or "connect" in text.lower():
        return hub.unreachable("model", name, REMEDY)
    return UserError(f"The model '{name}' could not be loaded ({_reason(error)}).")
