"""The newest checkpoint and the one before: what is kept, and what damage to them costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_engine.activations.stream import StreamState
from sae_engine.errors import DiskFullError, UserError
from sae_engine.files import RunFolder, published_file
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.trainer import Budget, SAETrainer
from sae_engine.schema.config import SAEConfig, TrainConfig
from sae_engine.text.packing import Cursor
from sae_engine.training import checkpoint
from sae_engine.training.checkpoint import (
    CheckpointWriter,
    TrainState,
    load_checkpoint,
    save_checkpoint,
)


def trainer_of(value: float) -> SAETrainer:
    """A trainer recognizable by its weights, which all have the given value."""
    sae = TopKSAE(4, 16, 2)
    trainer = SAETrainer(sae, SAEConfig(d_sae=16, k=2), TrainConfig(), Budget(10, 640))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.fill_(value)
    return trainer


def state_at(step: int) -> TrainState:
    stream = StreamState(2, 7, Cursor(3, 1))
    return TrainState(step, step * 64, 1.5, 0.5, 2.0, 3.0, 7, math.inf, stream, "same")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A folder in which checkpoints of steps 1, 2 and 3 were saved, one after the other."""
    folder = RunFolder(tmp_path / "run")
    for step in (1, 2, 3):
        save_checkpoint(folder, trainer_of(float(step)).tensors(), state_at(step))
    return folder


def loaded(folder: RunFolder) -> tuple[TrainState, float, str | None]:
    trainer = trainer_of(0.0)
    state, notice = load_checkpoint(folder, trainer)
    [weight] = {p.unique().item() for p in trainer.sae.parameters()}
    return state, weight, notice


def test_the_newest_checkpoint_is_loaded_and_the_one_before_is_kept(folder: RunFolder):
    assert loaded(folder) == (state_at(3), 3.0, None)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "last.safetensors",
        "previous.safetensors",
    ]


def test_a_checkpoint_is_written_while_the_run_trains_on(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    """It holds what the trainer was when it was saved, and the next one waits for it."""
    may_write = Event()

    def write_later(*arguments: Any, **more: Any) -> None:
        assert may_write.wait(10)
        save_file(*arguments, **more)

    monkeypatch.setattr(checkpoint, "save_file", write_later)
    writer, trainer = CheckpointWriter(folder), trainer_of(4.0)
    writer.save(trainer, state_at(4))
    with torch.no_grad():
        for parameter in trainer.sae.parameters():
            parameter.fill_(5.0)
    assert loaded(folder) == (state_at(3), 3.0, None)
    Timer(0.05, may_write.set).start()
    writer.save(trainer, state_at(5))
    state, weight, _ = loaded(folder)
    assert (state.step, weight) in ((4, 4.0), (5, 5.0))
    writer.wait()
    assert loaded(folder) == (state_at(5), 5.0, None)
    folder.checkpoint.unlink()
    assert loaded(folder)[:2] == (state_at(4), 4.0)


@pytest.mark.parametrize("ask", ["save", "wait"])
def test_a_checkpoint_that_could_not_be_written_is_reported_once(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, ask: str
):
    def fill_the_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    writer = CheckpointWriter(folder)
    with monkeypatch.context() as full:
        full.setattr(checkpoint, "save_file", fill_the_disk)
        writer.save(trainer_of(4.0), state_at(4))
        writer.close()
    assert loaded(folder) == (state_at(3), 3.0, None)
    with pytest.raises(DiskFullError):
        writer.wait() if ask == "wait" else writer.save(trainer_of(5.0), state_at(5))
    writer.wait()
    writer.save(trainer_of(6.0), state_at(6))
    writer.wait()
    assert loaded(folder) == (state_at(6), 6.0, None)


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _spoil_the_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


DAMAGES = [_flip_a_bit, _truncate, _empty, _spoil_the_header, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_costs_the_steps_since_the_previous_one(
    folder: RunFolder, damage: Callable[[Path], object]
):
    damage(folder.checkpoint)
    assert folder.has_checkpoint
    state, weight, notice = loaded(folder)
    assert (state, weight) == (state_at(2), 2.0)
    assert notice is not None
    assert str(folder.checkpoint) in notice
    assert "step 2" in notice


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_if_both_checkpoints_are_damaged_the_error_names_one_of_them(
    folder: RunFolder, damage: Callable[[Path], object]
):
    damage(folder.checkpoint)
    damage(folder.previous_checkpoint)
    with pytest.raises(UserError, match=r"checkpoint.*last|checkpoint.*previous"):
        loaded(folder)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError("4096 requested and 512 written"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "numpy", "safetensors"],
)
def test_a_full_disk_is_reported_and_leaves_the_checkpoints_unchanged(
    folder: RunFolder, error: Exception
):
    before = {path.name: path.read_bytes() for path in folder.checkpoints.iterdir()}

    def write_half() -> None:
        with published_file(folder.checkpoint, keep=folder.previous_checkpoint) as path:
            path.write_bytes(b"half")
            raise error

    with pytest.raises(DiskFullError, match=r"The disk that holds .*last.* is full"):
        write_half()
    assert {path.name: path.read_bytes() for path in folder.checkpoints.iterdir()} == before
