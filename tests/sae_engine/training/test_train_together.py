"""Several SAEs on one pass: each equals one trained alone, whatever happens to the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

from sae_engine.activations.processes import Helper
from sae_engine.errors import UserError
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from sae_engine.sae import trainer
from sae_engine.schema.config import RunConfig, TrainConfig
from sae_engine.schema.records import (
    AnyRecord,
    EndRecord,
    FailureRecord,
    MetricsRecord,
    PhaseRecord,
    StopRequest,
)
from sae_engine.training import loop, spread
from sae_engine.training.clock import Clock, HostTimer
from sae_engine.training.loop import train, train_together
from sae_engine.training.member import Member
from tests.sae_engine.training.test_loop import Whole, collected, config_of, losses

VARIANTS = [
    {"sae": {"k": 2}},
    {
        "sae": {"d_sae": 96},
        "train": {"total_tokens": 64 * 16, "log_every": 5, "dead_feature_threshold": 128},
    },
    {"model": {"layer": 2}},
    {"model": {"layer": 0, "site": "mlp_out"}, "train": {"lr": 1e-3, "auxk_alpha": 0.0}},
]


pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.fixture(scope="module")
def configs(model_folders) -> list[RunConfig]:
    return [config_of(model_folders["gemma2"], **variant) for variant in VARIANTS]


@pytest.fixture(scope="module")
def alone(configs: list[RunConfig], tmp_path_factory: pytest.TempPathFactory) -> list[Whole]:
    """The lone twin of each member."""
    folders = [RunFolder(tmp_path_factory.mktemp("alone")) for _ in configs]
    return [Whole(f, collected(train(c, f))) for c, f in zip(configs, folders, strict=True)]


@pytest.fixture(params=[0, 2], ids=["here", "spread"])
def others(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many other processes take steps of members; here, they are threads."""
    monkeypatch.setattr(loop, "reader_devices", lambda config, own: ["cpu"] * request.param)
    monkeypatch.setattr(spread, "Helper", HelperInThread)


class HelperInThread(Helper):
    """Does what a `Helper` does, without seconds of starting a process."""

    def __init__(self, kind: str, device: str, serve: Callable[..., None], *args: object) -> None:
        self.connection, theirs = Pipe()

        def run() -> None:
            with theirs, suppress(EOFError):
                serve(theirs, *args)

        self._thread = Thread(target=run)
        self._thread.start()

    def close(self) -> None:
        self.connection.close()
        self._thread.join()


def together(
    configs: list[RunConfig],
    folder: Path,
    should_stop: Callable[[int, list[list[AnyRecord]]], StopRequest] = lambda n, r: (
        StopRequest.NONE
    ),
) -> list[list[AnyRecord]]:
    """The records of each member."""
    records: list[list[AnyRecord]] = [[] for _ in configs]
    members = [
        Member(config, RunFolder(folder / str(n)), lambda n=n: should_stop(n, records))
        for n, config in enumerate(configs)
    ]
    for number, record in train_together(members):
        records[number].append(record)
    return records


def assert_equal_saes(one: RunFolder, other: RunFolder) -> None:
    for name, tensor in load_file(one.sae).items():
        assert torch.equal(load_file(other.sae)[name], tensor), name


@pytest.mark.usefixtures("others")
def test_members_of_a_sweep_equal_their_lone_twins(
    configs: list[RunConfig], alone: list[Whole], tmp_path: Path
):
    """Over widths, k, layers, sites and lengths: losses, weights and snapshots, bit for bit."""
    swept = together(configs, tmp_path / "together")
    for n, twin in enumerate(alone):
        assert losses(swept[n]) == losses(twin.records)
        assert isinstance(swept[n][-1], EndRecord)
        assert swept[n][-1] == twin.records[-1]
        folder = RunFolder(tmp_path / "together" / str(n))
        assert_equal_saes(folder, twin.folder)
        assert folder.snapshots() == twin.folder.snapshots()
        step = folder.snapshots()[-1]
        mine, theirs = (FeatureIndex.open(f.feature_index(step)) for f in (folder, twin.folder))
        assert mine.num_tokens == theirs.num_tokens
    assert not (tmp_path / "together" / "0" / "index_corpus").exists()


@pytest.mark.usefixtures("others")
def test_a_stopped_member_leaves_and_the_others_continue(
    configs: list[RunConfig], alone: list[Whole], tmp_path: Path
):
    def stop_the_second(number: int, records: list[list[AnyRecord]]) -> StopRequest:
        reached = any(isinstance(r, MetricsRecord) and r.step >= 5 for r in records[number])
        return StopRequest.STOP if number == 1 and reached else StopRequest.NONE

    swept = together(configs[:2], tmp_path / "together", stop_the_second)
    assert swept[1][-1] == EndRecord(reason="stopped", step=5, tokens=5 * 64)
    folder = RunFolder(tmp_path / "together" / "1")
    assert folder.snapshots() == [5]
    assert losses(swept[0]) == losses(alone[0].records)
    assert_equal_saes(RunFolder(tmp_path / "together" / "0"), alone[0].folder)

    # Resumed alone, the stopped member equals an uninterrupted run.
    rest = collected(train(configs[1], folder, resume=True))
    assert losses(swept[1]) | losses(rest) == losses(alone[1].records)
    assert_equal_saes(folder, alone[1].folder)


@pytest.mark.usefixtures("others")
def test_a_member_whose_loss_is_not_finite_leaves_and_the_others_continue(
    configs: list[RunConfig],
    alone: list[Whole],
    model_folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    scheduled = trainer.scheduled_lr

    def poisoned(config: TrainConfig, peak: float, done: int, total: int) -> float:
        return math.nan if peak == 0.5 and done > 8 else scheduled(config, peak, done, total)

    monkeypatch.setattr(trainer, "scheduled_lr", poisoned)
    bad = config_of(model_folders["gemma2"], train={"lr": 0.5})
    swept = together([configs[0], bad], tmp_path / "together")
    failure = swept[1][-1]
    assert isinstance(failure, FailureRecord)
    assert failure.error_type == "NonFiniteLossError"
    assert "weights became NaN or infinite at step 10" in failure.message
    assert isinstance(swept[0][-1], EndRecord)
    assert losses(swept[0]) == losses(alone[0].records)
    assert torch.isfinite(load_file(tmp_path / "together" / "1" / "sae.safetensors")["W_dec"]).all()


def test_reading_activations_ends_once_all_members_are_stopped(
    configs: list[RunConfig], tmp_path: Path
):
    swept = together(configs[:2], tmp_path, lambda n, r: StopRequest.STOP)
    assert [r[-1] for r in swept] == [EndRecord(reason="stopped", step=0, tokens=0)] * 2


def test_a_member_that_ends_does_not_slow_the_throughput_of_the_others(
    configs: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a fake clock, where the first member takes 1,000 s to evaluate after its last step."""
    now = [0.0]

    def read_clock() -> float:
        return now[0]

    def poll() -> StopRequest:  # once per step and member, and while reading
        now[0] += 1
        return StopRequest.NONE

    monkeypatch.setattr("sae_engine.interrupt.CHECK_SECONDS", 1000)  # no polls by real time
    monkeypatch.setattr(
        loop, "Clock", lambda batch, timer: Clock(batch, HostTimer(read_clock), read_clock)
    )
    short = config_of(Path(configs[0].model.name), train={"total_tokens": 64 * 16})
    members = [
        Member(config, RunFolder(tmp_path / str(n)), poll)
        for n, config in enumerate([short, configs[0]])
    ]
    speeds: list[float] = []
    for number, record in train_together(members):
        if number == 0 and isinstance(record, PhaseRecord) and record.phase == "evaluating":
            now[0] += 1000
        if number == 1 and isinstance(record, MetricsRecord):
            speeds.append(record.values["tokens_per_second"])
    assert min(speeds) > 5  # with the 1,000 s counted, it would be below 3


def test_runs_that_stopped_at_different_steps_are_not_resumed_together(
    configs: list[RunConfig], alone: list[Whole], tmp_path: Path
):
    folders = [alone[0].folder, RunFolder(tmp_path)]
    members = [Member(c, f, resume=True) for c, f in zip(configs, folders, strict=False)]
    with pytest.raises(UserError, match="resume them one by one"):
        list(train_together(members))
