"""The attention used on a GPU equals eager attention, or is rejected."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoConfig, Gemma2Config
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sae_engine.model.attention import EAGER, choose_attention, faster_attention, rejection_reason
from sae_engine.model.language_model import LanguageModel
from sae_engine.schema.config import ModelConfig

CPU = torch.device("cpu")
NAMES = {"gemma2": "flex_attention", "llama": "sdpa", "gpt2": "sdpa"}
# raised by torch's compiler on import and by FlexAttention without compilation
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*flex_attention.*:UserWarning"),
]


@pytest.fixture
def not_compiled() -> Iterator[None]:
    """Runs FlexAttention uncompiled, because compiling takes a minute on a CPU."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", NAMES)
def test_the_faster_attention_passes_its_trial(model_folders, architecture, dtype):
    config = AutoConfig.from_pretrained(model_folders[architecture])
    before = config.to_dict()
    assert faster_attention(config) == NAMES[architecture]
    assert rejection_reason(config, NAMES[architecture], 40, dtype, CPU) is None
    assert config.to_dict() == before


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("architecture", NAMES)
def test_activations_are_the_same_with_the_faster_attention(model_folders, architecture):
    model = LanguageModel.load(ModelConfig(name=str(model_folders[architecture]), layer=2))
    ids = torch.randint(3, 8192, (3, 40))  # longer than Gemma-2's sliding window
    expected = model.activations(ids)
    model._model.set_attn_implementation(NAMES[architecture])
    torch.testing.assert_close(model.activations(ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("head_dim", [8, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_attention_without_the_soft_cap_is_rejected(monkeypatch, dtype, head_dim):
    """A head_dim of 256 is that of Gemma-2-2b."""

    def uncapped(*args, softcap=None, **kwargs):
        return flex_attention_forward(*args, **kwargs)

    config = Gemma2Config(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
    )  # fmt: skip
    assert rejection_reason(config, "flex_attention", 128, dtype, CPU) is None
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flex_attention", uncapped)
    reason = rejection_reason(config, "flex_attention", 128, dtype, CPU)
    assert reason is not None
    assert "off by" in reason


def test_an_attention_that_raises_is_rejected_and_logged(model_folders, monkeypatch, caplog):
    """Scaled dot product attention has no soft-cap, so transformers raises for Gemma-2."""
    config = AutoConfig.from_pretrained(model_folders["gemma2"])
    monkeypatch.setattr("sae_engine.model.attention.faster_attention", lambda _config: "sdpa")
    with caplog.at_level(logging.WARNING):
        chosen = choose_attention(config, 40, torch.float32, torch.device("meta"))
    assert chosen == EAGER
    assert "sdpa does not work" in caplog.text


def test_a_cpu_uses_eager_attention(model_folders):
    config = ModelConfig(name=str(model_folders["gemma2"]), layer=1, device="cpu")
    model = LanguageModel.load(config, ctx_len=40)
    assert model._model.config._attn_implementation == EAGER


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", NAMES)
def test_a_gpu_uses_the_faster_attention(model_folders, architecture, dtype):
    name = str(model_folders[architecture])
    config = ModelConfig(name=name, layer=2, device="cuda", dtype=dtype)
    fast, eager = LanguageModel.load(config, ctx_len=40), LanguageModel.load(config)
    assert fast._model.config._attn_implementation == NAMES[architecture]
    ids = torch.randint(3, 8192, (8, 40))
    expected, found = eager.activations(ids).float(), fast.activations(ids).float()
    difference = (found - expected).norm() / expected.norm()
    assert difference < (1e-4 if dtype == "float32" else 0.03)
