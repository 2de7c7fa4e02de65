"""Estimates against counted parameters and written files."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sae_engine.activations.stream import BEGINNING
from sae_engine.errors import ConfigError
from sae_engine.estimate import GEMMA_2_2B, estimate, estimate_together, model_shape
from sae_engine.files import RunFolder
from sae_engine.model.loading import load_prefix
from sae_engine.preflight import embedded_model_folder
from sae_engine.presets import presets, resolve_config
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.trainer import Budget, SAETrainer
from sae_engine.schema.config import SAEConfig, TrainConfig
from sae_engine.training.checkpoint import TrainState, save_checkpoint


def folder_of(model_folders: dict[str, Path], name: str) -> Path:
    return embedded_model_folder() if name == "embedded" else model_folders[name]


@pytest.mark.parametrize("name", ["embedded", "gemma2", "llama", "gpt2"])
def test_a_models_parameters_are_counted_to_within_a_percent(model_folders, name):
    folder = folder_of(model_folders, name)
    config = resolve_config("tiny", {"model": {"name": str(folder), "layer": 1}})
    prefix = load_prefix([config.model]).model
    counted = sum(p.numel() for p in prefix.parameters())
    assert estimate(config, gpu=False).model_parameters == pytest.approx(counted, rel=0.01)
    shape = model_shape(json.loads((folder / "config.json").read_text("utf-8")))
    whole = AutoModelForCausalLM.from_pretrained(folder)
    expected = sum(p.numel() for p in whole.parameters())
    assert shape.prefix(shape.num_layers) + shape.head == pytest.approx(expected, rel=0.01)


def test_runs_on_one_pass_share_the_language_model_and_have_separate_saes():
    small, large = (
        resolve_config("tiny", {"sae": {"d_sae": width}, "model": {"layer": layer}})
        for width, layer in ((512, 1), (2048, 3))
    )
    each = [parts_of(estimate(config, gpu=False)) for config in (small, large)]
    together = estimate_together([small, large], gpu=False)
    parts = parts_of(together)
    for name in ("SAE", "Adam", "checkpoint being written", "16-bit copy of the encoder"):
        assert parts[name] == each[0][name] + each[1][name]
    assert parts["language model up to the hook"] == each[1]["language model up to the hook"]
    assert parts["waiting activations"] == 2 * each[1]["waiting activations"]  # of two layers
    assert together.memory_bytes == sum(parts.values())
    assert together.d_sae == 512
    assert estimate_together([large], gpu=True) == estimate(large, gpu=True)


def parts_of(found):
    return {part.name: part.bytes for part in found.memory}


def test_gemma_2_2b_has_the_published_number_of_parameters():
    shape = model_shape(GEMMA_2_2B)
    assert shape.prefix(26) + shape.head == 2_614_341_888


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_and_checkpoint_size_match_what_is_written(tmp_path, tied):
    shape = SAEConfig(d_sae=512, k=16, tied_weights=tied, normalize_decoder=tied)
    overrides = {"sae": shape.model_dump(exclude_unset=True)}
    expected = estimate(resolve_config("tiny", overrides), gpu=False)
    sae = TopKSAE(expected.d_in, expected.d_sae, shape.k, tied=tied)
    assert expected.parameters == sum(p.numel() for p in sae.parameters())
    trainer = SAETrainer(sae, shape, TrainConfig(), Budget(10, 1000))
    trainer.fit_input_(torch.randn(64, expected.d_in), 0)
    trainer.step(torch.randn(64, expected.d_in))
    folder = RunFolder(tmp_path)
    state = TrainState(1, 64, 0.0, 1.0, 1.0, 1.0, 0, 1.0, BEGINNING, "")
    save_checkpoint(folder, trainer.tensors(), state)
    assert folder.checkpoint.stat().st_size == pytest.approx(expected.checkpoint_bytes, rel=0.01)


def test_steps_and_tokens_are_whole_batches_and_unknown_for_epochs():
    found = estimate(resolve_config("tiny", {}), gpu=False)
    assert (found.steps, found.tokens) == (1171, 1171 * 512)
    found = estimate(resolve_config("tiny", {"train": {"num_epochs": 1}}), gpu=False)
    assert (found.steps, found.tokens) == (None, None)


@pytest.mark.parametrize("gpu", [True, False])
def test_the_memory_is_the_sum_of_its_parts_for_every_preset(gpu):
    for preset in presets().values():
        found = estimate(preset.config, gpu=gpu)
        assert found.memory_bytes == sum(part.bytes for part in found.memory)
        assert found.device == ("gpu" if gpu else "cpu")


@pytest.mark.parametrize("tokens", [32_768, 262_144, 2**22])
def test_shuffled_text_takes_main_memory(tokens):
    config = resolve_config("tiny", {"data": {"shuffle_tokens": tokens}})
    expected = {} if tokens == 32_768 else {"shuffled text": 16 * tokens}
    parts = parts_of(estimate(config, gpu=False))
    assert {n: size for n, size in parts.items() if n == "shuffled text"} == expected
    assert "shuffled text" not in parts_of(estimate(config, gpu=True))


def test_gemma_2_2b_presets_fit_a_gpu_of_12_gib():
    for name in ("gemma-2-2b", "gemma-2-2b-seed"):
        assert estimate(resolve_config(name, {}), gpu=True).memory_bytes < 12 * 2**30


def test_a_width_inside_the_mlp_is_known():
    inner = {"model": {"hook_point": "model.layers.2.mlp.down_proj", "hook_io": "input"}}
    assert estimate(resolve_config("tiny", inner), gpu=False).d_in == 768


def test_a_model_without_a_readable_config_is_named():
    config = resolve_config("tiny", {"model": {"name": "nobody/has-this-model"}})
    with pytest.raises(ConfigError, match=r"'nobody/has-this-model' cannot be read"):
        estimate(config, gpu=False)


def test_a_model_without_a_size_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    config = resolve_config("tiny", {"model": {"name": str(tmp_path)}})
    with pytest.raises(ConfigError, match="lacks 'num_attention_heads'"):
        estimate(config, gpu=False)


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("preset", ["tiny", "gemma-2-2b-seed"])
def test_an_import_trains_nothing(preset, gpu):
    trained = estimate(resolve_config(preset, {}), gpu=gpu)
    found = estimate(resolve_config(preset, {"sae": {"pretrained": "their/sae"}}), gpu=gpu)
    assert (found.steps, found.tokens, found.checkpoint_bytes) == (0, 0, 0)
    parts, training = parts_of(found), {"Adam", "one step", "shuffled text"}
    assert not (training | {"checkpoint being written", "published SAE"}) & parts.keys()
    assert parts["SAE"] == parts_of(trained).get("published SAE", parts["SAE"])
    assert found.memory_bytes == sum(parts.values()) < trained.memory_bytes
    assert found.disk_bytes < trained.disk_bytes
    assert found.model_parameters == trained.model_parameters


def test_only_what_is_read_again_is_stored_and_the_rest_takes_the_space_of_its_codes():
    def disk(tokens: int, **train: object) -> int:
        overrides = {
            "data": {"heldout_tokens": 100_000},
            "index": {"tokens": tokens, "snapshot_tokens": 50_000},
            "sae": {"k": 16},
            "train": train,
        }
        return estimate(resolve_config("tiny", overrides), gpu=False).disk_bytes

    stored = 192 * 4  # bytes of an activation of the embedded model
    codes = 16 * (12 + 8) + 24  # kept, and while they are sorted; and the tokens
    pairs = 16 * 18
    all_pairs = 8192 * estimate(resolve_config("tiny", {}), gpu=False).d_sae * 18
    assert disk(100_000) - disk(99_000) == 1000 * (codes + pairs)
    rest = 10**8 - 100_000
    overlap = 3 * (10**8 // 6 - 100_000 // 6)
    assert disk(10**8) - disk(100_000) == rest * codes + all_pairs - 100_000 * pairs + overlap
    more = disk(10**8, eval_tokens=300_000) - disk(10**8, eval_tokens=50_000)
    assert more == 200_000 * stored


@pytest.mark.parametrize(("tokens", "num_saes"), [(10**7, 40), (100_000, 1)])
def test_runs_whose_indexes_are_read_together_hold_their_saes_at_the_same_time(tokens, num_saes):
    config = resolve_config(
        "tiny",
        {
            "sae": {"d_sae": 2**17},
            "data": {"heldout_tokens": 100_000, "ctx_len": 1024, "shuffle_tokens": 32_768},
            "index": {"tokens": tokens},
        },
    )
    one = parts_of(estimate(config, gpu=False))["published SAE"]
    together = parts_of(estimate_together([config] * 40, gpu=False))
    assert together["published SAE"] == num_saes * one
