"""What a run needs of its language model is tried before it trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.model.language_model import LanguageModel
from sae_engine.schema.config import ModelConfig
from sae_engine.schema.records import StartRecord
from sae_engine.training import rehearsal
from sae_engine.training.loop import train
from sae_engine.training.rehearsal import rehearse
from tests.sae_engine.training.test_loop import config_of


def copied(model: Path, folder: Path, *, without: str = "") -> Path:
    """A copy of a model's folder, without one of its tensors."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    if without:
        del tensors[without]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("architecture", ["gemma2", "llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_works_passes_and_no_random_number_is_drawn(
    model_folders, architecture, dtype
):
    folder = str(model_folders[architecture])
    also = ModelConfig(name=folder, layer=2, site="mlp_out", dtype=dtype)
    model = LanguageModel.load(also.model_copy(update={"layer": 0}), also=[also])
    before = torch.random.get_rng_state()
    rehearse(model)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("architecture", "tensor"),
    [
        ("llama", "lm_head.weight"),  # needed for the features
        ("llama", "model.norm.weight"),
        ("gemma2", "model.layers.3.mlp.up_proj.weight"),  # only needed for the cross-entropy
        ("gpt2", "transformer.h.2.ln_1.bias"),
    ],
)
def test_a_tensor_that_is_only_needed_at_the_end_is_missed_before_training(
    model_folders, tmp_path, architecture, tensor
):
    folder = copied(model_folders[architecture], tmp_path / "model", without=tensor)
    records = []
    name = tensor.removeprefix("model.")
    with pytest.raises(UserError, match=rf"lack 1 of its tensors, such as (model\.)?{name}"):
        records.extend(train(config_of(folder), RunFolder(tmp_path / "run")))
    assert not any(isinstance(record, StartRecord) for record in records)


@pytest.mark.parametrize(
    ("config", "model"), [(BertConfig, BertModel), (XLMRobertaConfig, XLMRobertaModel)]
)
def test_an_encoder_is_refused(model_folders, tmp_path, config: Callable, model: Callable):
    encoder = model(
        config(
            vocab_size=8192,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=66,
        )
    )
    encoder.save_pretrained(tmp_path / "model")
    for file in model_folders["gemma2"].glob("tokenizer*.json"):
        shutil.copy(file, tmp_path / "model")
    with pytest.raises(UserError, match="does not predict each token from those before it"):
        list(train(config_of(tmp_path / "model"), RunFolder(tmp_path / "run")))


def test_a_decoder_that_reads_later_tokens_is_refused(model_folders, tmp_path):
    """EmbeddingGemma, for one, differs from Gemma-3 only in this setting."""
    config = Gemma3TextConfig(
        vocab_size=8192,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        use_bidirectional_attention=True,
    )
    embedder = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for parameter in embedder.parameters():
            parameter.mul_(5)
    embedder.save_pretrained(tmp_path / "model")
    for file in model_folders["gemma2"].glob("tokenizer*.json"):
        shutil.copy(file, tmp_path / "model")
    model = LanguageModel.load(ModelConfig(name=str(tmp_path / "model"), layer=1))
    with pytest.raises(UserError, match="does not predict each token from those before it"):
        rehearse(model)


PARTS = [
    ("_read", "reading its activations"),
    ("_cross_entropy", "measuring its cross-entropy"),
    ("_index", "building a feature index"),
]


@pytest.mark.parametrize(("function", "part"), PARTS)
def test_the_part_that_fails_is_named(model_folders, monkeypatch, function, part):
    def fail(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(rehearsal, function, fail)
    model = LanguageModel.load(ModelConfig(name=str(model_folders["llama"]), layer=1))
    with pytest.raises(UserError, match=rf"cannot be used here: {part} failed .*IndexError") as it:
        rehearse(model)
    assert "list index" not in str(it.value)


def test_a_head_that_is_not_the_one_of_the_logits_is_noticed(model_folders, monkeypatch):
    model = LanguageModel.load(ModelConfig(name=str(model_folders["llama"]), layer=1))
    load = model.with_head

    def with_a_bias_that_only_the_whole_forward_pass_adds():
        causal_lm = load()
        forward = causal_lm.forward

        def biased(ids: torch.Tensor, **options: object):
            answer = forward(ids, **options)
            if ids.any():  # not when the measured logits are computed
                answer.logits[..., 0] += 100
            return answer

        causal_lm.forward = biased
        return causal_lm

    monkeypatch.setattr(model, "with_head", with_a_bias_that_only_the_whole_forward_pass_adds)
    with pytest.raises(UserError, match=r"cross-entropy of .* cannot be measured"):
        rehearse(model)


def test_activations_that_are_not_finite_are_refused(model_folders, tmp_path):
    folder = copied(model_folders["llama"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1e30
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = LanguageModel.load(ModelConfig(name=str(folder), layer=0, dtype="float16"))
    with pytest.raises(UserError, match=r"not finite in float16; choose another model\.dtype"):
        rehearse(model)


def test_a_model_whose_configuration_says_more_layers_than_its_files_hold_is_refused(
    model_folders, tmp_path
):
    folder = copied(model_folders["gemma2"], tmp_path)
    described = json.loads((folder / "config.json").read_text())
    described |= {"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}
    (folder / "config.json").write_text(json.dumps(described))
    model = LanguageModel.load(ModelConfig(name=str(folder), layer=0))
    with pytest.raises(UserError, match=r"lack \d+ of its tensors, such as model\.layers\.4"):
        rehearse(model)
