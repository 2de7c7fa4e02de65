"""What a model's configuration and tokenizer decide before its weights are loaded: its class, how
many layers are enough, and whether they fit each other.

Read by `loading`.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModel,
)

from sae_engine.model.hook_points import layer_stack, text_config, truncate
from sae_engine.model_files import check_special_ids, no_embedding, not_a_decoder
from sae_engine.schema.config import ModelConfig

_log = logging.getLogger(__name__)


def causal_class(name: str, hf_config: Any) -> Any:
    """The class of the whole model, which predicts the next token; raises `ConfigError` if there is
    none.

    A multimodal model is loaded with all its parts, because its files name their tensors so.
    """
    kind, language = type(hf_config), text_config(hf_config)
    is_encoder = getattr(language, "is_decoder", True) is False
    if is_encoder and not language.model_type.startswith("gpt_neox"):  # a decoder all the same
        raise not_a_decoder(name)
    is_multimodal = language is not hf_config
    if is_multimodal and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[kind]
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    raise not_a_decoder(name)


def first_layers(hf_config: Any, num_layers: int) -> Any:
    """The configuration of the first `num_layers` layers, or of all if cutting the model changes
    what the first layers are, which two models without weights show.
    """
    if num_layers == text_config(hf_config).num_hidden_layers:
        return hf_config
    cut = copy.deepcopy(hf_config)
    try:
        truncate(cut, num_layers)
        ours, theirs = (_layer_settings(config) for config in (cut, hf_config))
    except Exception:  # whatever architectures raise
        _log.info("%s cannot be cut", hf_config.model_type, exc_info=True)
        return hf_config
    return cut if ours and ours.items() <= theirs.items() else hf_config


def _layer_settings(hf_config: Any) -> dict[str, str]:
    """The plain attributes and the tensors' shapes of every module in the decoder layers."""
    with torch.device("meta"):
        model = AutoModel.from_config(copy.deepcopy(hf_config))
    stack = layer_stack(model)
    settings: dict[str, str] = {}
    for path, module in model.named_modules():
        if stack is None or not path.startswith(f"{stack}."):
            continue
        plain = {n: v for n, v in vars(module).items() if isinstance(v, bool | int | float | str)}
        shapes = {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False)}
        settings[path] = repr((type(module), plain, shapes))
    return settings


def check_tokenizer(config: ModelConfig, tokenizer: Any, vocab_size: int) -> None:
    """Raise `ConfigError` for tokens that the model has no embedding for and may be given."""
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    check_special_ids(config, special, vocab_size)
    backend = tokenizer.backend_tokenizer
    if backend.get_vocab_size() <= vocab_size:
        return
    # Special tokens in a document are read as text.
    known = {id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special}
    beyond = (
        (id_, token)
        for token, id_ in backend.get_vocab().items()
        if id_ >= vocab_size and id_ not in known
    )
    for id_, token in beyond:
        raise no_embedding(config, f"'{token}' has id {id_:,}", vocab_size)
