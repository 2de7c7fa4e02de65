"""Several readers give what one gives, bit for bit, and a lost one loses nothing."""

from __future__ import annotations

import os
import signal
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae_engine.activations import readers
from sae_engine.activations.feed import TextFeed
from sae_engine.activations.readers import Reader, reader_devices
from sae_engine.activations.stream import BEGINNING, ActivationStream
from sae_engine.errors import ConfigError, UserError
from sae_engine.files import RunFolder
from sae_engine.presets import resolve_config
from sae_engine.schema.config import ModelConfig, RunConfig
from sae_engine.schema.records import MetricsRecord
from sae_engine.training.loop import train

CTX = 32


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_engine.activations.stream.TOKENS_PER_BLOCK", 16 * CTX)


def config_of(model: Path, num_readers: int, **sections: dict[str, Any]) -> RunConfig:
    settings: dict[str, Any] = {
        "model": {"name": str(model), "layer": 1, "readers": num_readers},
        "data": {"ctx_len": CTX, "heldout_tokens": 1000, "shuffle_tokens": 2000},
        "sae": {"d_sae": 32, "k": 4},
        "train": {
            "total_tokens": 6400,
            "batch_size_tokens": 128,
            "log_every": 1,
            "save_every": 10,
            "ce_tokens": 256,
        },
        "index": {"tokens": 1000, "snapshot_tokens": 1000},
    }
    for section, values in sections.items():
        settings[section] |= values
    return resolve_config(None, settings)


def stream_of(feed: TextFeed, state: Any = BEGINNING) -> ActivationStream:
    return ActivationStream(feed.open_source, batch_size=100, seed=0, state=state)


def test_two_readers_give_the_blocks_of_one_from_any_position(model_folders):
    alone, shared = (TextFeed([config_of(model_folders["gemma2"], n)]) for n in (1, 2))
    expected, stream = stream_of(alone), stream_of(shared)
    for _ in range(30):
        assert torch.equal(next(stream)[0], next(expected)[0])
        assert stream.state == expected.state
    resumed = stream_of(shared, stream.state)  # ends the readers of the first
    assert len(active_children()) == 1
    for _ in range(12):
        assert torch.equal(next(resumed)[0], next(expected)[0])
    shared.close()
    assert active_children() == []


def test_a_run_with_readers_loses_one_and_goes_on_with_another_number(model_folders, tmp_path):
    """It equals its twin with one process, which was never interrupted."""
    configs = [config_of(model_folders["gemma2"], n) for n in (1, 2, 3)]
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    losses: list[dict[int, float]] = [{}, {}]

    def trained(number: int, folder: RunFolder, *, kill: bool = False, resume: bool = False):
        into = losses[0 if folder is whole else 1]
        for record in train(configs[number], folder, resume=resume):
            if isinstance(record, MetricsRecord) and "loss" in record.values:
                into[record.step] = record.values["loss"]
                if kill and record.step == 25:
                    for child in active_children():
                        os.kill(child.pid or 0, signal.SIGKILL)

    trained(0, whole)
    with pytest.raises(UserError, match=r"reader on cpu ended \(exit code -9\).*Resume the run"):
        trained(1, parts, kill=True)
    assert active_children() == []
    trained(2, parts, resume=True)
    assert active_children() == []
    assert losses[0] == losses[1]
    for name, tensor in load_file(whole.sae).items():
        assert torch.equal(load_file(parts.sae)[name], tensor)


def test_a_reader_that_fails_says_why(model_folders, monkeypatch):
    missing = ModelConfig(name=str(model_folders["gemma2"] / "nothing"), layer=1)
    reader = Reader([missing], CTX, "cpu")
    try:
        with pytest.raises(UserError, match=r"reader on cpu failed: .*nothing"):
            reader.receive(torch.device("cpu"))
    finally:
        reader.close()


def test_how_many_readers_there_are(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert reader_devices(ModelConfig(), cpu) == []
    assert reader_devices(ModelConfig(readers=3), cpu) == ["cpu", "cpu"]
    assert reader_devices(ModelConfig(), gpu) == ["cuda:1", "cuda:2", "cuda:3"]
    assert reader_devices(ModelConfig(readers=2), torch.device("cuda:1")) == ["cuda:0"]
    assert reader_devices(ModelConfig(device="cuda:1"), torch.device("cuda:1")) == []
    assert reader_devices(ModelConfig(device_map="auto"), gpu) == []
    with pytest.raises(ConfigError, match="5 were asked for, but 4 GPUs"):
        reader_devices(ModelConfig(readers=5), gpu)
    with pytest.raises(ConfigError, match="there can be only one"):
        reader_devices(ModelConfig(readers=2, device_map="auto"), gpu)
    monkeypatch.delattr(readers.os, "memfd_create")
    with pytest.raises(ConfigError, match="needs Linux"):
        reader_devices(ModelConfig(readers=2), cpu)
