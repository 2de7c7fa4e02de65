"""Small random language models in folders, like a user's local models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from sae_engine.preflight import embedded_model_folder

VOCAB = 8192  # of the embedded model's tokenizer, which these models share
COMMON = {"vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
WIDTH = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


def _gemma2() -> PreTrainedModel:
    config = Gemma2Config(
        **COMMON,
        **WIDTH,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=8,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config)


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**COMMON, **WIDTH, max_position_embeddings=64))


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(**COMMON, n_embd=32, n_layer=4, n_head=4, n_positions=64))


ARCHITECTURES = {"gemma2": _gemma2, "llama": _llama, "gpt2": _gpt2}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """Kernels divide their work, which other tests leave to one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a random model per architecture. Norms and biases are random too, because their
    usual ones and zeros would hide bugs.
    """
    folders: dict[str, Path] = {}
    for name, build in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    parameter.mul_(3)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        for file in embedded_model_folder().glob("tokenizer*.json"):
            shutil.copy(file, folder)
        folders[name] = folder
    return folders
