"""A model completed from its first layers and the files equals the one that transformers loads."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from sae_engine.errors import UserError
from sae_engine.model.language_model import LanguageModel
from sae_engine.model.loading import load_head, load_prefix, load_whole
from sae_engine.schema.config import ModelConfig

ARCHITECTURES = ["gemma2", "llama", "gpt2"]
IDS = torch.arange(5, 37).view(2, 16)


def in_memory(model: nn.Module) -> dict[int, int]:
    """Sizes in bytes of the storages of a model's parameters, by address."""
    storages = [p.untyped_storage() for p in model.parameters()]
    return {s.data_ptr(): s.nbytes() for s in storages}


def sharded(folder: Path, into: Path) -> Path:
    """The same model in several files."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(into, max_shard_size="60KB")
    for file in folder.glob("tokenizer*.json"):
        (into / file.name).write_bytes(file.read_bytes())
    assert len(list(into.glob("model-*.safetensors"))) > 2
    return into


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["one file", "shards"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_completed_model_equals_the_one_loaded_whole(
    model_folders, tmp_path, architecture, layout, dtype
):
    folder = model_folders[architecture]
    if layout == "shards":
        folder = sharded(folder, tmp_path)
    config = ModelConfig(name=str(folder), layer=1, dtype=dtype)
    completed = load_whole(config, load_prefix([config]).model)
    whole = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    expected = whole.state_dict()
    found = completed.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with torch.inference_mode():
        assert torch.equal(
            completed(IDS, use_cache=False).logits, whole.eval()(IDS, use_cache=False).logits
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_missing_tensors_take_new_memory(model_folders, architecture):
    config = ModelConfig(name=str(model_folders[architecture]), layer=1)
    prefix = load_prefix([config]).model
    completed = load_whole(config, prefix)
    have = in_memory(prefix)
    new = sum(size for place, size in in_memory(completed).items() if place not in have)
    lacking = {
        name: parameter
        for name, parameter in completed.named_parameters()
        if re.search(r"\.[23]\.|lm_head", name)  # layers 2 and 3, and Llama's untied head
    }
    expected = sum(p.numel() * p.element_size() for p in lacking.values())
    assert new == expected > 0
    assert have.keys() <= in_memory(completed).keys()


@pytest.mark.parametrize("layout", ["one file", "shards"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loading_the_head_takes_memory_for_nothing_else(
    model_folders, tmp_path, architecture, layout
):
    folder = model_folders[architecture]
    config = ModelConfig(
        name=str(sharded(folder, tmp_path) if layout == "shards" else folder), layer=1
    )
    prefix = load_prefix([config]).model
    with_head = load_head(config, prefix)
    head = with_head.get_output_embeddings().weight
    whole = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(head, whole.get_output_embeddings().weight)
    have = in_memory(prefix)
    new = sum(size for place, size in in_memory(with_head).items() if place not in have)
    is_tied = with_head.config.tie_word_embeddings
    assert new == (0 if is_tied else head.numel() * head.element_size())


def test_a_model_placed_by_device_map_gives_the_same_activations_and_loss(model_folders):
    folder = str(model_folders["gemma2"])
    config = ModelConfig(name=folder, layer=1, device="cpu", dtype="float32")
    spread = LanguageModel.load(config.model_copy(update={"device_map": "auto"}))
    plain = LanguageModel.load(config)
    torch.testing.assert_close(spread.activations(IDS).cpu(), plain.activations(IDS))
    assert spread.full().cross_entropy(IDS)[0] == pytest.approx(
        plain.full().cross_entropy(IDS)[0], rel=1e-6
    )


def test_a_tensor_missing_from_the_files_is_named(model_folders, tmp_path):
    for file in model_folders["gemma2"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = ModelConfig(name=str(tmp_path), layer=1)
    model = LanguageModel.load(config)
    with pytest.raises(UserError, match=r"lack 1 of .*model\.layers\.3\.mlp\.up_proj\.weight"):
        model.full()
    with pytest.raises(UserError, match=r"lack 1 of .*layers\.3\.mlp\.up_proj\.weight"):
        LanguageModel.load(config.model_copy(update={"layer": 3}))


def test_a_shard_missing_from_the_folder_is_reported(model_folders, tmp_path):
    folder = sharded(model_folders["gemma2"], tmp_path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    (folder / index["weight_map"]["model.layers.3.mlp.up_proj.weight"]).unlink()
    with pytest.raises(UserError, match="does not hold a complete model"):
        LanguageModel.load(ModelConfig(name=str(folder), layer=1))


def test_code_of_a_model_is_never_run(model_folders, tmp_path):
    for path in model_folders["gemma2"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    described = json.loads((tmp_path / "config.json").read_text())
    described |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="code from its own files, which is never run"):
        LanguageModel.load(ModelConfig(name=str(tmp_path), layer=1))
    assert not (tmp_path / "ran").exists()
