"""What the cache keeps in memory between requests, and what it drops."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from sae_engine.errors import ConfigError, UserError
from sae_engine.files import published_file
from sae_engine.model.language_model import LanguageModel
from sae_engine.playground.cache import MAX_SAES, ModelCache
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.schema.config import ModelConfig

MODEL, WHOLE, SAE_READ = (
    "loading the language model",
    "loading the rest of the language model",
    "reading the SAE",
)
IDS = torch.tensor([[2, 50, 60, 70]])


def save_sae(path: Path, *, d_in: int = 32, seed: int = 0) -> Path:
    sae = TopKSAE(d_in, 64, 4)
    sae.initialize_(seed, torch.zeros(d_in))
    with published_file(path) as temporary:
        sae.save(temporary)
    return path


def test_a_second_request_loads_nothing(model_folders, tmp_path):
    phases: list[str] = []
    cache, sae = ModelCache(phases.append), save_sae(tmp_path / "a.safetensors")
    config = ModelConfig(name=str(model_folders["gemma2"]), layer=2)
    first = cache.get(config, sae)
    assert phases == [MODEL, SAE_READ]
    assert cache.get(config, sae) == first
    assert phases == [MODEL, SAE_READ]
    first[0].whole.next_logits(IDS)
    cache.get(config, sae)[0].whole.next_logits(IDS)
    assert phases == [MODEL, SAE_READ, WHOLE]


@pytest.mark.parametrize("architecture", ["gemma2", "llama", "gpt2"])
def test_a_hook_within_the_loaded_layers_loads_nothing(model_folders, tmp_path, architecture):
    phases: list[str] = []
    cache, sae = ModelCache(phases.append), save_sae(tmp_path / "a.safetensors")
    folder = str(model_folders[architecture])
    deep = ModelConfig(name=folder, layer=2)
    cache.get(deep, sae)[0].whole.next_logits(IDS)
    phases.clear()
    other = ModelConfig(name=folder, layer=1, site="mlp_out")
    model, _ = cache.get(other, sae)
    expected = LanguageModel.load(other)
    assert torch.equal(model.model.activations(IDS), expected.activations(IDS))
    add = torch.ones(32)
    spliced = model.whole.next_logits(IDS, add=add).logits
    assert torch.equal(spliced, expected.full().next_logits(IDS, add=add).logits)
    assert phases == []


def test_the_old_model_is_freed_before_a_deeper_or_another_one_is_loaded(model_folders, tmp_path):
    old: list[weakref.ref[torch.nn.Module]] = []
    alive_at_load: list[bool] = []

    def report(phase: str) -> None:
        if phase == MODEL:
            gc.collect()
            alive_at_load.append(any(module() is not None for module in old))

    cache, sae = ModelCache(report), save_sae(tmp_path / "a.safetensors")
    gemma, llama = (str(model_folders[name]) for name in ("gemma2", "llama"))
    for config in (
        ModelConfig(name=gemma, layer=1),
        ModelConfig(name=gemma, layer=3),
        ModelConfig(name=llama, layer=1),
    ):
        model = cache.get(config, sae)[0]
        old += [weakref.ref(model.model._model), weakref.ref(model.whole.model)]
        del model
    assert alive_at_load == [False] * 3


def test_the_most_recently_used_saes_are_kept(model_folders, tmp_path):
    phases: list[str] = []
    cache = ModelCache(phases.append)
    config = ModelConfig(name=str(model_folders["gemma2"]), layer=1)
    paths = [save_sae(tmp_path / f"{n}.safetensors", seed=n) for n in range(MAX_SAES + 1)]
    for path in paths:
        cache.get(config, path)
    phases.clear()
    for path in paths[1:]:
        cache.get(config, path)
    assert phases == []
    cache.get(config, paths[0])
    assert phases == [SAE_READ]


def test_an_sae_replaced_on_disk_is_read_again(model_folders, tmp_path):
    cache, path = ModelCache(), tmp_path / "sae.safetensors"
    config = ModelConfig(name=str(model_folders["gemma2"]), layer=1)
    _, before = cache.get(config, save_sae(path, seed=0))
    _, after = cache.get(config, save_sae(path, seed=1))
    assert not torch.equal(before.W_dec, after.W_dec)


def test_a_failed_load_is_explained_and_the_next_request_works(model_folders, tmp_path):
    cache, sae = ModelCache(), save_sae(tmp_path / "a.safetensors")
    config = ModelConfig(name=str(model_folders["gemma2"]), layer=1)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        cache.get(ModelConfig(name="nobody/has-this-model"), sae)
    with pytest.raises(ConfigError, match="Layer 9 does not exist"):
        cache.get(config.model_copy(update={"layer": 9}), sae)
    with pytest.raises(UserError, match=r"'.*gone.safetensors' no longer exists"):
        cache.get(config, tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match=r"width 16, but those of .* at model\.layers\.1 have"):
        cache.get(config, save_sae(tmp_path / "narrow.safetensors", d_in=16))
    model, _ = cache.get(config, sae)
    assert model.model.d_in == 32
