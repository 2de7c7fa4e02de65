"""Runs that fail or whose features do: what they keep, and what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sae_engine.errors import DiskFullError, UserError
from sae_engine.features.index.codes import ActivationRangeError
from sae_engine.files import RunFolder
from sae_engine.sae import trainer
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.schema.config import RunConfig, TrainConfig
from sae_engine.schema.records import AnyRecord, EndRecord, NoticeRecord
from sae_engine.training import heldout
from sae_engine.training.loop import NonFiniteLossError, train
from tests.sae_engine.training.test_loop import collected, config_of, losses

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.fixture
def config(model_folders) -> RunConfig:
    return config_of(model_folders["gemma2"])


def poison_weights(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let every optimizer step from `step` on turn the weights into NaN."""
    scheduled_lr = trainer.scheduled_lr

    def poisoned_lr(config: TrainConfig, peak: float, done: int, total: int) -> float:
        return math.nan if done + 1 >= step else scheduled_lr(config, peak, done, total)

    monkeypatch.setattr(trainer, "scheduled_lr", poisoned_lr)


def assert_kept(folder: RunFolder, step: int) -> None:
    """The published files are those of the checkpoint of `step`, and finite."""
    with safe_open(folder.checkpoint, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == step
    for path in (folder.checkpoint, folder.sae, folder.best.sae):
        if path.exists():
            for name, tensor in load_file(path).items():
                assert torch.isfinite(tensor).all(), (path, name)
    assert folder.snapshots() == []


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_sae(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    poison_weights(monkeypatch, 8)
    folder = RunFolder(tmp_path / "run")
    records: list[AnyRecord] = []
    with pytest.raises(NonFiniteLossError, match=r"became nan at step 9; lower train\.lr"):
        collected(train(config, folder), records)
    assert math.isnan(losses(records)[9])
    assert_kept(folder, 6)


@pytest.mark.parametrize(
    ("due", "step", "kept"),
    [
        ({"save_every": 5}, 10, 5),
        ({"eval_every": 8}, 8, 6),
        ({"ce_every": 8}, 8, 6),
        ({"snapshot_every": 8}, 8, 6),
        ({}, 24, 18),
    ],
    ids=["checkpoint", "evaluation", "cross-entropy", "snapshot", "end of the run"],
)
def test_weights_that_became_nan_at_an_unlogged_step_are_not_published(
    model_folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    due: dict[str, int],
    step: int,
    kept: int,
):
    """The loss of the poisoned step, computed before its update, is still finite."""
    quiet = {"log_every": 1000, "eval_every": 1000, "snapshot_every": None}
    config = config_of(model_folders["gemma2"], train=quiet | due)
    poison_weights(monkeypatch, step)
    folder = RunFolder(tmp_path / "run")
    records: list[AnyRecord] = []
    message = rf"weights became NaN or infinite at step {step}; lower train\.lr .* are kept"
    with pytest.raises(NonFiniteLossError, match=message):
        collected(train(config, folder), records)
    assert all(math.isfinite(loss) for loss in losses(records).values())
    assert_kept(folder, kept)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ActivationRangeError("Latent 3 has activation inf."), "Latent 3 has activation inf."),
        (UserError("The index corpus has no tokens."), "The index corpus has no tokens."),
        (RuntimeError("an internal matter"), "RuntimeError."),
    ],
)
def test_an_index_that_cannot_be_built_costs_no_run(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(heldout, "build_index", fail)
    folder = RunFolder(tmp_path / "run")
    records = collected(train(config, folder))
    assert records[-1] == EndRecord(reason="finished", step=24, tokens=24 * 64)
    notices = [r for r in records if isinstance(r, NoticeRecord)]
    assert [(n.level, n.step) for n in notices] == [("warning", step) for step in (9, 18, 24)]
    assert notices[-1].message == (
        "The feature index of step 24 could not be built, so it has no features; the SAE and the "
        f"run are not affected. {cause}"
    )
    assert TopKSAE.load(folder.sae).k == 4
    assert folder.snapshots() == []


def test_a_full_disk_while_building_an_index_ends_the_run(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise DiskFullError("The disk is full.")

    monkeypatch.setattr(heldout, "build_index", fail)
    with pytest.raises(UserError, match="The disk is full"):
        collected(train(config, RunFolder(tmp_path / "run")))
