"""What is refused or decided before a model's weights are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Gemma3nForCausalLM, Gemma3nTextConfig, T5Config

from sae_engine.errors import ConfigError
from sae_engine.model import loading
from sae_engine.model.choices import first_layers
from sae_engine.model.language_model import LanguageModel
from sae_engine.model.loading import load_prefix
from sae_engine.schema.config import ModelConfig
from tests.sae_engine.model.architectures import ARCHITECTURES
from tests.sae_engine.model.test_architectures import IDS, output_of

GEMMA3N = {
    "vocab_size": 8192,
    "vocab_size_per_layer_input": 8192,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "sliding_window": 8,
    "layer_types": ["full_attention"] * 4,
    "activation_sparsity_pattern": [0.0] * 4,
}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if weights are loaded."""
    monkeypatch.setattr(loading.AutoModel, "from_pretrained", None)


def described(folder: Path, **settings: object) -> ModelConfig:
    """`folder` with other settings in its `config.json`."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return ModelConfig(name=str(folder), layer=1)


@pytest.fixture
def gpt2(model_folders, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folders["gpt2"], tmp_path / "gpt2"))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_rows_longer_than_the_positions_are_refused(model_folders, architecture):
    config = ModelConfig(name=str(model_folders[architecture]), layer=1)
    with pytest.raises(ConfigError, match="65 tokens exceed the 64 positions"):
        load_prefix([config], ctx_len=65)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_quantized_weights_are_refused_without_their_package(gpt2, monkeypatch, method):
    monkeypatch.setattr("sae_engine.model_files.find_spec", lambda name: None)
    config = described(gpt2, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ConfigError, match=rf"quantized with {method}.*: pip install"):
        load_prefix([config])


@pytest.mark.usefixtures("no_weights")
def test_an_encoder_decoder_is_refused(gpt2):
    (gpt2 / "config.json").write_text(T5Config(num_layers=2).to_json_string())
    with pytest.raises(ConfigError, match="not an encoder or an encoder-decoder"):
        load_prefix([ModelConfig(name=str(gpt2), layer=1)])


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("added", "words"),
    [
        ({"bos_token": "<|start|>"}, r"its bos token has id 8,192, but .* ids 0 to 8,191"),
        ({"eos_token": "<|end|>"}, "its eos token has id 8,192"),
        ("zyxzyx", r"'zyxzyx' has id 8,192"),
    ],
)
def test_a_token_without_an_embedding_is_refused(gpt2, added, words):
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    if isinstance(added, dict):
        tokenizer.add_special_tokens(added)
    else:
        tokenizer.add_tokens([added])
    tokenizer.save_pretrained(gpt2)
    with pytest.raises(ConfigError, match=words):
        load_prefix([ModelConfig(name=str(gpt2), layer=1)])


def test_a_pad_token_without_an_embedding_is_harmless(gpt2):
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(gpt2)
    model = LanguageModel.load(ModelConfig(name=str(gpt2), layer=1))
    assert 8192 in model.excluded_ids
    assert model.activations(IDS).isfinite().all()


def test_all_layers_are_loaded_where_the_first_depend_on_their_number(gpt2):
    """The last two layers of this Gemma 3n read the keys of earlier ones; of a model cut to two
    layers, these would be the first two.
    """
    config = Gemma3nTextConfig(**GEMMA3N, num_kv_shared_layers=2)
    own = Gemma3nForCausalLM(config).eval()
    own.save_pretrained(gpt2)
    model = LanguageModel.load(ModelConfig(name=str(gpt2), hook_point="model.layers.1.mlp"))
    assert len(model._model.layers) == 4
    assert ["take memory" in notice for notice in model.notices] == [True]
    with torch.no_grad():
        expected = output_of(own, "model.layers.1.mlp")
    torch.testing.assert_close(model.activations(IDS), expected)


@pytest.mark.parametrize("name", ["gemma2", "lfm2", "mamba", "gemma3"])
def test_other_models_are_cut(name):
    cut = first_layers(ARCHITECTURES[name]().config, 2)
    assert cut.get_text_config().num_hidden_layers == 2
