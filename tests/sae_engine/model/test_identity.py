"""Another model of the same name is noticed; another dtype or depth of the same model is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.model.identity import ModelIdentity, require_same_model
from sae_engine.model.language_model import LanguageModel
from sae_engine.playground.read import ProbeModel
from sae_engine.presets import resolve_config
from sae_engine.schema.config import ModelConfig
from sae_engine.training.loop import train

CHANGED = "has changed since this run began"


def identity_of(folder: Path, **settings: object) -> ModelIdentity:
    return ModelIdentity.of(LanguageModel.load(ModelConfig(name=str(folder), layer=1, **settings)))


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def change_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    noise = torch.Generator().manual_seed(1)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=noise).to(tensor.dtype)
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("architecture", ["gemma2", "llama", "gpt2"])
def test_neither_dtype_nor_depth_changes_an_identity(model_folders, tmp_path, architecture):
    folder, kept = model_folders[architecture], tmp_path / "model.json"
    identity_of(folder).save(kept)
    for settings in ({"dtype": "bfloat16"}, {"dtype": "float16"}):
        require_same_model(identity_of(folder, **settings), kept)
    deeper = LanguageModel.load(ModelConfig(name=str(folder), layer=2))
    require_same_model(ModelIdentity.of(deeper), kept)
    require_same_model(ProbeModel.of(deeper).identity, kept)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2"])
def test_other_weights_are_another_model(model_folders, tmp_path, architecture):
    folder, kept = copied(model_folders[architecture], tmp_path / "m"), tmp_path / "model.json"
    identity_of(folder).save(kept)
    change_weights(folder)
    with pytest.raises(UserError, match=CHANGED):
        require_same_model(identity_of(folder), kept)


def test_another_vocabulary_is_another_model(model_folders, tmp_path):
    folder, kept = copied(model_folders["gemma2"], tmp_path / "m"), tmp_path / "model.json"
    identity_of(folder).save(kept)
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text("utf-8"))
    ids = described["model"]["vocab"]
    ids["x"], ids["y"] = ids["y"], ids["x"]
    path.write_text(json.dumps(described), "utf-8")
    with pytest.raises(UserError, match=CHANGED):
        require_same_model(identity_of(folder), kept)


def test_runs_without_the_file_are_compared_by_their_vocabulary(model_folders, tmp_path):
    found, missing = identity_of(model_folders["gemma2"]), tmp_path / "model.json"
    require_same_model(found, missing)
    require_same_model(found, missing, vocab_size=found.vocab_size)
    with pytest.raises(UserError, match=CHANGED):
        require_same_model(found, missing, vocab_size=found.vocab_size - 1)


def test_a_run_is_not_resumed_on_another_model(model_folders, tmp_path):
    folder, run = copied(model_folders["gemma2"], tmp_path / "m"), RunFolder(tmp_path / "run")
    settings = {
        "model": {"name": str(folder), "layer": 1},
        "data": {"ctx_len": 32, "heldout_tokens": 1000, "shuffle_tokens": 1000},
        "sae": {"d_sae": 16, "k": 4},
        "train": {"total_tokens": 1024, "batch_size_tokens": 64, "ce_tokens": 256},
        "index": {"tokens": 1000, "snapshot_tokens": 1000},
    }
    config = resolve_config(None, settings)
    list(train(config, run))
    list(train(config, run, resume=True))
    change_weights(folder)
    with pytest.raises(UserError, match=CHANGED):
        list(train(config, run, resume=True))
