"""A real job killed with SIGKILL at any moment and resumed equals an uninterrupted one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from sae_engine.files import RunFolder
from sae_engine.schema.config import RunConfig
from tests.sae_engine.fresh_process import start
from tests.sae_engine.training.test_loop import config_of

JOB = """
import json, sys, torch, yaml
from pathlib import Path
from sae_engine.activations import stream
from sae_engine.files import RunFolder
from sae_engine.presets import resolve_config
from sae_engine.schema.records import MetricsRecord
from sae_engine.training.loop import train

torch.set_num_threads(2)
stream.TOKENS_PER_BLOCK = 512
config = resolve_config(None, yaml.safe_load(Path(sys.argv[1]).read_text()))
folder = RunFolder(sys.argv[2])
with open(sys.argv[3], "a") as log:
    for record in train(config, folder, resume=folder.checkpoint.exists()):
        if isinstance(record, MetricsRecord) and "loss" in record.values:
            log.write(json.dumps([record.step, record.values["loss"]]) + "\\n")
            log.flush()
"""
NUM_KILLS = 3


def start_job(config: Path, folder: RunFolder, log: Path, *, before: str = "") -> BaseProcess:
    """A job, which runs the code `before` first."""
    return start(before + JOB, str(config), str(folder.path), str(log))


def exit_code(job: BaseProcess) -> int | None:
    """The exit code of a job, once it has ended."""
    job.join()
    return job.exitcode


def logged(path: Path) -> dict[int, float]:
    """Loss by step; later entries replace earlier ones, and the last line may be cut off."""
    found: dict[int, float] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            step, loss = json.loads(line)
            found[step] = loss
    return found


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def config(model_folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a mixture, shuffled in pools, of which one dataset soon begins again."""
    folder = tmp_path_factory.mktemp("config")
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"{n} of {n * n} words, " * 40 for n in range(20)))
    parts = [{"dataset": "python-stdlib", "weight": 2}, {"dataset": str(text), "weight": 1}]
    config: RunConfig = config_of(
        model_folders["gemma2"],
        data={"mixture": parts},
        sae={"d_sae": 512},
        train={
            "total_tokens": 64 * 120,
            "save_every": 5,
            "eval_every": 30,
            "snapshot_every": 40,
            "dead_feature_threshold": 640,
        },
    )
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


class Whole(NamedTuple):
    """The uninterrupted run."""

    folder: RunFolder
    losses: dict[int, float]


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    path = tmp_path_factory.mktemp("whole")
    folder, log = RunFolder(path / "run"), path / "log"
    assert exit_code(start_job(config, folder, log)) == 0
    return Whole(folder, logged(log))


def assert_equal_weights(one: Path, other: Path) -> None:
    mine, theirs = load_file(one), load_file(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_job_killed_at_random_moments_equals_an_uninterrupted_one(
    config: Path, whole: Whole, tmp_path: Path
):
    """Losses of every step, final weights, optimizer state and snapshots are equal bit for bit.

    Each run of this test draws other moments: a number of steps after the last kill and then some
    milliseconds, so that kills fall into steps, evaluations, checkpoints and index building.
    """
    seed = int.from_bytes(os.urandom(4), "big")
    random = np.random.default_rng(seed)
    parts, parts_log = RunFolder(tmp_path / "parts"), tmp_path / "parts.log"
    for _ in range(NUM_KILLS):
        job = start_job(config, parts, parts_log)
        lines = num_lines(parts_log) + random.integers(1, 100 // NUM_KILLS)
        while num_lines(parts_log) < lines:
            job.join(0.001)
            assert job.exitcode is None, f"seed {seed}"
        job.join(random.uniform(0, 0.2))
        job.kill()
        assert exit_code(job) == -signal.SIGKILL
    assert exit_code(start_job(config, parts, parts_log)) == 0
    assert logged(parts_log) == whole.losses, f"seed {seed}"
    assert_equal_weights(parts.sae, whole.folder.sae)
    assert_equal_weights(parts.checkpoint, whole.folder.checkpoint)
    assert_equal_weights(parts.best.sae, whole.folder.best.sae)
    assert parts.snapshots() == whole.folder.snapshots()
    for step in whole.folder.snapshots():
        mine, theirs = (f.feature_index(step) for f in (parts, whole.folder))
        assert_equal_weights(mine / "sae.safetensors", theirs / "sae.safetensors")


@pytest.mark.parametrize("write", ["half", "unrenamed"])
def test_a_job_killed_while_writing_a_checkpoint_resumes_from_the_previous_one(
    config: Path, whole: Whole, tmp_path: Path, write: str
):
    """The kill happens in the middle of the bytes, or before the rename."""
    parts, parts_log = RunFolder(tmp_path / "parts"), tmp_path / "parts.log"
    deadly = f"""
import os, signal
from sae_engine.training import checkpoint
save_file, calls = checkpoint.save_file, []
def killing(tensors, path, metadata):
    calls.append(path)
    save_file(tensors, path, metadata)
    if len(calls) == 4:
        if {write!r} == "half":
            os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = killing
"""
    assert exit_code(start_job(config, parts, parts_log, before=deadly)) == -signal.SIGKILL
    assert list(parts.checkpoints.glob("*.tmp")) or list(parts.checkpoints.glob(".*.tmp"))
    assert max(logged(parts_log)) == 20
    assert exit_code(start_job(config, parts, parts_log)) == 0
    assert logged(parts_log) == whole.losses
    assert_equal_weights(parts.sae, whole.folder.sae)
