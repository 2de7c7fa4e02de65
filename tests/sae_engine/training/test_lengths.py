"""How many tokens an epoch and the held-out text hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_engine.activations.feed import TextFeed
from sae_engine.files import RunFolder
from sae_engine.schema.config import DataConfig
from sae_engine.schema.records import NoticeRecord, PlanRecord
from sae_engine.text.packing import Packing, training_rows
from sae_engine.training.loop import train
from tests.sae_engine.training.test_loop import collected, config_of

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_the_length_of_an_epoch_is_counted_in_the_text(model_folders, tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"document {n} holds a few words of text" for n in range(400)))
    config = config_of(
        model_folders["gemma2"],
        data={"dataset": str(path)},
        train={"total_tokens": None, "num_epochs": 2, "eval_every": 1000, "snapshot_every": None},
    )
    records = collected(train(config, RunFolder(tmp_path / "run")))
    plan = next(r for r in records if isinstance(r, PlanRecord))
    words = 400 * 0.9 * 12 * 2
    assert 0.5 * words < plan.total_tokens < 1.5 * words
    short = [r for r in records if isinstance(r, NoticeRecord)]
    assert "fewer than the 1,500 requested" in short[0].message


def test_short_documents_fill_the_held_out_text_without_a_notice(model_folders, tmp_path: Path):
    """A sixth of their tokens are eos, which are never held out."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"{n} is short" for n in range(10_000)))
    config = config_of(model_folders["gemma2"], data={"dataset": str(path)})
    held = TextFeed([config]).open_heldout(1500, tmp_path / "held")
    assert 1500 <= held.num_tokens < 1500 + 32


def test_an_epoch_is_exact_where_bos_and_eos_are_one_token(model_folders, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(model_folders["gpt2"], folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bos_token": "<eos>"}))
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"document {n} holds a few words of text" for n in range(400)))
    feed = TextFeed([config_of(folder, data={"dataset": str(path), "ctx_len": 16})])
    assert feed.model.bos_id == feed.model.eos_id
    data = DataConfig(dataset=str(path), ctx_len=16)
    packing = Packing(feed.model.tokenizer, 16, feed.model.bos_id, feed.model.eos_id)
    rows = torch.from_numpy(np.stack(list(training_rows(data, packing, num_epochs=1))))
    assert feed.num_train_tokens == int((~feed.model.special_mask(rows)).sum())
