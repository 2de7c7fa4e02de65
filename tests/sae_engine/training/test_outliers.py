"""Attention sinks in whole runs: they decide no scale, metric or feature, wherever they are."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from sae_engine.model.language_model import LanguageModel
from sae_engine.playground.read import ProbeModel, read_text
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.schema.config import DataConfig, ModelConfig, RunConfig
from sae_engine.schema.records import AnyRecord, MetricsRecord, NoticeRecord, StopRequest
from sae_engine.text.packing import Packing
from sae_engine.training.loop import train
from tests.sae_engine.text.heldout_text import heldout_rows
from tests.sae_engine.training.test_loop import collected, config_of, losses, stopping_at

pytestmark = pytest.mark.usefixtures("small_blocks")


def with_sink(source: Path, target: Path, *, bos: bool, place: int) -> Path:
    """A model whose activation at position `place` of each row is about 75 times the others'."""
    shutil.copytree(source, target)
    model = GPT2LMHeadModel.from_pretrained(target)
    with torch.no_grad():
        model.transformer.wpe.weight[place] = 0
        model.transformer.wpe.weight[place, 7] = 400.0
    model.save_pretrained(target)
    if not bos:
        file = target / "tokenizer_config.json"
        described = json.loads(file.read_text()) | {"bos_token": None}
        described.pop("add_bos_token", None)
        file.write_text(json.dumps(described))
    return target


def last_values(records: list[AnyRecord]) -> dict[str, float]:
    return [r for r in records if isinstance(r, MetricsRecord)][-1].values


def heldout_activations(config: RunConfig, place: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Held-out activations at position `place` and at all other ordinary positions, from a plain
    call of the model.
    """
    model = LanguageModel.load(ModelConfig(name=config.model.name, layer=1))
    ctx_len = config.data.ctx_len
    packing = Packing(model.tokenizer, ctx_len, model.bos_id, model.eos_id)
    rows = heldout_rows(DataConfig(ctx_len=ctx_len), packing, config.data.heldout_tokens * 51 // 50)
    ids = torch.from_numpy(rows)
    values, ordinary = model.activations(ids), ~model.special_mask(ids)
    at_place = torch.zeros_like(ordinary)
    at_place[:, place] = True
    ends = ordinary.sum(1).cumsum(0)
    first_rows = int((ends < config.data.heldout_tokens).sum()) + 1
    used = (torch.arange(len(ids)) < first_rows)[:, None] & ordinary
    return values[used & at_place], values[used & ~at_place]


@pytest.mark.parametrize(("bos", "place"), [(False, 0), (True, 3)])
def test_a_sink_anywhere_is_left_out_of_training_metrics_and_features(
    model_folders, tmp_path: Path, bos: bool, place: int
):
    model = with_sink(model_folders["gpt2"], tmp_path / "model", bos=bos, place=place)
    config = config_of(model, train={"snapshot_every": None, "eval_every": 1000})
    folder = RunFolder(tmp_path / "run")
    records = collected(train(config, folder))
    sinks, others = heldout_activations(config, place)
    assert sinks.norm(dim=1).min() > 30 * others.norm(dim=1).median()

    values = last_values(records)
    sae = TopKSAE.load(folder.sae)
    error = (others - sae(others)).pow(2).sum() / (others - others.mean(0)).pow(2).sum()
    assert values["eval_fvu"] == pytest.approx(error.item(), rel=1e-4)
    assert values["eval_outlier_tokens"] == len(sinks)
    assert values["top_token_share"] < 0.1
    assert values["fvu"] < 2
    index = FeatureIndex.open(folder.feature_index(24))
    assert index.num_tokens == len(others)

    limit = index.manifest.largest_norm
    assert limit is not None
    assert others.norm(dim=1).max() < limit < sinks.norm(dim=1).min()
    probe = ProbeModel.of(LanguageModel.load(ModelConfig(name=str(model), layer=1)))
    ctx_len = config.data.ctx_len
    read = read_text(probe, sae, "import os\n" * 40, ctx_len=ctx_len, largest_norm=limit)
    assert len(read.tokens) > 2 * ctx_len
    for number, token in enumerate(read.tokens):
        why = {0: "BOS" if bos else None, place: "outlier"}.get(number % ctx_len)
        assert token.excluded == why
        assert bool(token.features) == bool(token.num_active) == (why is None)
    assert values["outlier_tokens"] == pytest.approx(24 * 64 / (31 if bos else 32), rel=0.35)
    [notice] = [r for r in records if isinstance(r, NoticeRecord) and "median norm" in r.message]
    assert "exceeds 10 times the median norm (data.max_norm_multiple)" in notice.message

    inspected = config_of(model, sae={"d_sae": None, "pretrained": str(folder.path)})
    again = last_values(collected(train(inspected, RunFolder(tmp_path / "inspected"))))
    assert again["eval_outlier_tokens"] == len(sinks)
    assert again["eval_fvu"] == pytest.approx(values["eval_fvu"])


def test_without_the_filter_a_few_tokens_hold_most_of_the_variance(model_folders, tmp_path: Path):
    model = with_sink(model_folders["gpt2"], tmp_path / "model", bos=False, place=0)
    data = {"ctx_len": 64, "heldout_tokens": 1500, "max_norm_multiple": None}
    quiet = {"snapshot_every": None, "eval_every": 1000}
    config = config_of(model, train=quiet, data=data)
    values = last_values(collected(train(config, RunFolder(tmp_path / "run"))))
    assert (values["outlier_tokens"], values["eval_outlier_tokens"]) == (0, 0)
    x = torch.cat(heldout_activations(config, 0))
    distance = (x - x.mean(0)).pow(2).sum(1).sort(descending=True).values
    share = distance[: math.ceil(len(x) / 100)].sum() / distance.sum()
    assert values["top_token_share"] == pytest.approx(share.item(), rel=1e-3)
    assert share > 0.5


def test_a_run_with_sinks_resumes_exactly(model_folders, tmp_path: Path):
    model = with_sink(model_folders["gpt2"], tmp_path / "model", bos=False, place=0)
    config = config_of(model, train={"snapshot_every": None, "eval_every": 10})
    whole = collected(train(config, RunFolder(tmp_path / "whole")))
    folder = RunFolder(tmp_path / "parts")
    first: list[AnyRecord] = []
    collected(train(config, folder, should_stop=stopping_at(13, StopRequest.STOP, first)), first)
    second = collected(train(config, folder, resume=True))
    assert losses(first) | losses(second) == losses(whole)
    for name, tensor in load_file(RunFolder(tmp_path / "whole").sae).items():
        assert torch.equal(load_file(folder.sae)[name], tensor)
    for name in ("outlier_tokens", "eval_outlier_tokens", "eval_fvu"):
        assert last_values(second)[name] == last_values(whole)[name]


def from_file(tmp_path: Path, x: torch.Tensor, **data: object) -> dict[str, float]:
    """Last metrics of a run on saved activations."""
    tmp_path.mkdir()
    save_file({"activations": x}, tmp_path / "x.safetensors")
    settings = {
        "ctx_len": 32,
        "heldout_tokens": 1000,
        "activations": str(tmp_path / "x.safetensors"),
    }
    train_settings = {
        "total_tokens": 64 * 60,
        "snapshot_every": None,
        "dead_feature_threshold": 2000,
    }
    config = config_of(Path("tiny-gemma2"), data=settings | data, train=train_settings)
    return last_values(collected(train(config, RunFolder(tmp_path / "run"))))


@pytest.mark.parametrize("factor", [1e3, 1e6])
def test_one_outlier_row_in_thousands_changes_little(tmp_path: Path, factor: float):
    directions = torch.randn(80, 24)
    x = torch.relu(torch.randn(6000, 80) - 1.5) @ directions
    spoiled = x.clone()
    spoiled[100] *= factor / spoiled[100].norm() * x.norm(dim=1).median()
    clean = from_file(tmp_path / "clean", x)
    filtered = from_file(tmp_path / "filtered", spoiled)
    assert filtered["eval_fvu"] == pytest.approx(clean["eval_fvu"], rel=0.1)
    assert filtered["frac_alive"] == pytest.approx(clean["frac_alive"], abs=0.1)


def test_a_nan_in_the_activations_still_ends_the_run(tmp_path: Path):
    x = torch.randn(6000, 24)
    x[::700] = math.nan
    with pytest.raises(ValueError, match="became nan"):
        from_file(tmp_path / "nan", x)


def test_ids_and_contexts_leave_the_sink_token_out(model_folders, tmp_path: Path):
    """A sink that is a token, not a position."""
    model = tmp_path / "model"
    shutil.copytree(model_folders["gpt2"], model)
    causal = GPT2LMHeadModel.from_pretrained(model)
    tokenizer = LanguageModel.load(ModelConfig(name=str(model), layer=1)).tokenizer
    [sink] = tokenizer.encode("self", add_special_tokens=False).ids
    with torch.no_grad():
        causal.transformer.wte.weight[sink, 5] = 400.0
    causal.save_pretrained(model)
    config = config_of(model, train={"snapshot_every": None, "eval_every": 1000})
    folder = RunFolder(tmp_path / "run")
    values = last_values(collected(train(config, folder)))
    arrays = FeatureIndex.open(folder.feature_index(24)).arrays
    assert values["eval_outlier_tokens"] > 0
    assert not np.isin(arrays.token_ids, [sink]).any()
