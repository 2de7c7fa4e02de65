"""Whole runs on a small random model: what they write, how they stop, how exactly they resume."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from sae_engine.errors import ConfigError, UserError
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from sae_engine.presets import resolve_config
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import (
    METRICS,
    AnyRecord,
    EndRecord,
    MetricsRecord,
    NoticeRecord,
    PlanRecord,
    SnapshotRecord,
    StopRequest,
)
from sae_engine.training.heldout import HeldoutWork
from sae_engine.training.loop import train
from sae_engine.training.position import saved_position

pytestmark = pytest.mark.usefixtures("small_blocks")


class Whole(NamedTuple):
    """A run that nothing interrupts."""

    folder: RunFolder
    records: list[AnyRecord]


@pytest.fixture(scope="module")
def config(model_folders) -> RunConfig:
    return config_of(model_folders["gemma2"])


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = RunFolder(tmp_path_factory.mktemp("whole"))
    return Whole(folder, collected(train(config, folder)))


def config_of(model: Path, /, **overrides: dict) -> RunConfig:
    settings = {
        "model": {"name": str(model), "layer": 1},
        "data": {"ctx_len": 32, "heldout_tokens": 1500, "shuffle_tokens": 1200},
        "sae": {"d_sae": 64, "k": 4},
        "train": {
            "total_tokens": 64 * 24,
            "batch_size_tokens": 64,
            "log_every": 1,
            "eval_every": 10,
            "eval_tokens": 1000,
            "ce_tokens": 256,
            "save_every": 6,
            "snapshot_every": 9,
        },
        "index": {"tokens": 1500, "snapshot_tokens": 1000},
    }
    for section, values in overrides.items():
        settings[section] = settings[section] | values
    return resolve_config(None, settings)


def losses(records: list[AnyRecord]) -> dict[int, float]:
    return {
        r.step: r.values["loss"]
        for r in records
        if isinstance(r, MetricsRecord) and "loss" in r.values
    }


def stopping_at(
    step: int, request: StopRequest, records: list[AnyRecord]
) -> Callable[[], StopRequest]:
    """Requests a stop once a metrics record of `step` has been seen."""

    def should_stop() -> StopRequest:
        reached = any(isinstance(r, MetricsRecord) and r.step >= step for r in records)
        return request if reached else StopRequest.NONE

    return should_stop


def collected(run: Iterator[AnyRecord], into: list[AnyRecord] | None = None) -> list[AnyRecord]:
    """All records, appended to `into` one by one."""
    records = [] if into is None else into
    for record in run:
        records.append(record)
    return records


def test_a_run_writes_an_sae_and_its_features_and_yields_every_metric(whole: Whole):
    folder, records = whole
    plan = next(r for r in records if isinstance(r, PlanRecord))
    assert (plan.total_steps, plan.d_in, plan.d_sae) == (24, 32, 64)
    assert (plan.dtype, plan.readers) == ("float32", 1)
    assert plan.dead_feature_threshold == plan.total_tokens // 128
    assert isinstance(records[-1], EndRecord)
    assert records[-1].reason == "finished"
    assert sorted(losses(records)) == list(range(1, 25))
    last = [r for r in records if isinstance(r, MetricsRecord)][-1]
    assert last.step == 24
    assert {"loss", "fvu", "l0", "frac_dead", "lr", "grad_norm", "tokens_per_second"} <= set(
        last.values
    )
    assert {"eval_fvu", "eval_l0", "frac_alive", "ce_delta", "ce_loss_score"} <= set(last.values)
    shares = [last.values[f"{part}_share"] for part in ("lm", "buffer", "sae")]
    assert sum(shares) == pytest.approx(1)

    snapshots = [r for r in records if isinstance(r, SnapshotRecord)]
    assert [(s.step, s.final) for s in snapshots] == [(9, False), (18, False), (24, True)]
    assert folder.snapshots() == [9, 18, 24]
    index = FeatureIndex.open(folder.feature_index(24))
    assert index.num_tokens >= 1500
    published = load_file(folder.sae)
    torch.testing.assert_close(published["W_dec"].norm(dim=1), torch.ones(64))
    assert torch.equal(
        load_file(folder.feature_index(24) / "sae.safetensors")["W_enc"], published["W_enc"]
    )
    assert TopKSAE.load(folder.best.sae).d_sae == 64
    assert not folder.index_corpus.exists()
    assert not list(folder.path.rglob("*.tmp"))


@pytest.mark.parametrize("heldout_tokens", [1000, 1500])
@pytest.mark.parametrize(("fvus", "best"), [((0.5, 0.4, 0.6), 1), ((0.5, 0.6, 0.4), 2)])
def test_the_best_sae_is_chosen_on_the_same_tokens_throughout(
    model_folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heldout_tokens: int,
    fvus: tuple[float, ...],
    best: int,
):
    """On all held-out tokens, which differ from the first ones, the last SAE seems better."""
    measure = HeldoutWork.reconstruction
    seen: list[torch.Tensor] = []

    def scripted(work: HeldoutWork, sae: TopKSAE, num_tokens: int) -> dict[str, float]:
        found = measure(work, sae, num_tokens)
        if num_tokens > 1000:
            return found | {"eval_fvu": 0.1}
        seen.append(sae.W_enc.detach().clone())
        return found | {"eval_fvu": fvus[len(seen) - 1]}

    monkeypatch.setattr(HeldoutWork, "reconstruction", scripted)
    config = config_of(
        model_folders["gemma2"],
        data={"heldout_tokens": heldout_tokens},
        train={"snapshot_every": None, "ce_every": None},
    )
    folder = RunFolder(tmp_path)
    records = collected(train(config, folder))
    assert torch.equal(TopKSAE.load(folder.best.sae).W_enc, seen[best])
    shown = [r.values for r in records if isinstance(r, MetricsRecord)][-1]["eval_fvu"]
    assert shown == (fvus[-1] if heldout_tokens == 1000 else 0.1)


@pytest.mark.parametrize("step", [2, 7, 13])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    config: RunConfig, whole: Whole, tmp_path: Path, step: int
):
    folder = RunFolder(tmp_path / "parts")
    first: list[AnyRecord] = []
    collected(train(config, folder, should_stop=stopping_at(step, StopRequest.STOP, first)), first)
    assert first[-1].reason == "stopped"
    assert first[-1].step == step
    second = collected(train(config, folder, resume=True))
    assert losses(first) | losses(second) == losses(whole.records)
    assert min(losses(second)) == step + 1
    for name, tensor in load_file(whole.folder.sae).items():
        assert torch.equal(load_file(folder.sae)[name], tensor)


def _forget_device(folder: RunFolder) -> None:
    """Make the checkpoint one from before devices were kept."""
    with safe_open(folder.checkpoint, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    del state["device"]
    save_file(load_file(folder.checkpoint), folder.checkpoint, {"state": json.dumps(state)})


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (
            "NVIDIA A100",
            "NVIDIA H100",
            "trained on NVIDIA A100 so far and continues on NVIDIA H100",
        ),
        ("a CPU with AVX2", "a CPU with AVX512", "continues on a CPU with AVX512"),
        ("NVIDIA A100", "NVIDIA A100", None),
        (None, "NVIDIA H100", None),
    ],
)
def test_a_run_that_moves_to_another_kind_of_device_says_so(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    now: str,
    said: str | None,
):
    folder = RunFolder(tmp_path / "run")
    first: list[AnyRecord] = []
    monkeypatch.setattr("sae_engine.training.run.device_kind", lambda device: before or "a CPU")
    collected(train(config, folder, should_stop=stopping_at(1, StopRequest.FORCE, first)), first)
    if before is None:
        _forget_device(folder)
    monkeypatch.setattr("sae_engine.training.run.device_kind", lambda device: now)
    stop = stopping_at(2, StopRequest.FORCE, first)
    collected(train(config, folder, should_stop=stop, resume=True), first)
    notices = [r.message for r in first if isinstance(r, NoticeRecord)]
    assert len(notices) == (said is not None)
    assert said is None or said in notices[0]


@pytest.mark.parametrize("is_mixture", [False, True])
def test_resuming_from_a_checkpoint_older_than_the_last_logged_step_is_exact(
    config: RunConfig, whole: Whole, tmp_path: Path, is_mixture: bool
):
    """As after kill -9."""
    if is_mixture:
        text = tmp_path / "text.txt"
        text.write_text("\n\n".join(f"{n} of {n * n} words, " * 40 for n in range(20)))
        parts = [{"dataset": str(text), "weight": 2}, {"dataset": "python-stdlib", "weight": 1}]
        config = config_of(Path(config.model.name), data={"mixture": parts})
        whole_folder = RunFolder(tmp_path / "whole")
        whole = Whole(whole_folder, collected(train(config, whole_folder)))
    folder = RunFolder(tmp_path / "parts")
    run = train(config, folder)
    for record in run:
        if isinstance(record, MetricsRecord) and record.step == 15:
            break
    del run
    second = collected(train(config, folder, resume=True))
    assert min(losses(second)) == 13
    assert losses(second).items() <= losses(whole.records).items()
    for name, tensor in load_file(whole.folder.sae).items():
        assert torch.equal(load_file(folder.sae)[name], tensor)


@pytest.mark.parametrize(
    ("request_", "snapshots"), [(StopRequest.STOP, [5]), (StopRequest.FORCE, [])]
)
def test_a_stopped_run_keeps_a_usable_sae_and_builds_its_features_unless_forced(
    config: RunConfig, tmp_path: Path, request_: StopRequest, snapshots: list[int]
):
    folder = RunFolder(tmp_path / "run")
    records: list[AnyRecord] = []
    collected(train(config, folder, should_stop=stopping_at(5, request_, records)), records)
    assert records[-1] == EndRecord(reason="stopped", step=5, tokens=5 * 64)
    assert folder.snapshots() == snapshots
    assert TopKSAE.load(folder.sae).k == 4
    assert folder.checkpoint.exists()


def test_a_stop_interrupts_an_evaluation(config: RunConfig, tmp_path: Path):
    records: list[AnyRecord] = []

    def should_stop() -> StopRequest:
        evaluating = any(getattr(r, "phase", "") == "evaluating" for r in records)
        return StopRequest.STOP if evaluating else StopRequest.NONE

    collected(train(config, RunFolder(tmp_path / "run"), should_stop=should_stop), records)
    assert records[-1] == EndRecord(reason="stopped", step=10, tokens=640)


def test_a_checkpoint_of_another_shape_or_text_is_refused(model_folders, whole: Whole):
    other = config_of(model_folders["gemma2"], data={"seed": 7})
    with pytest.raises(UserError, match="is not what this run began with"):
        collected(train(other, whole.folder, resume=True))


@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
def test_a_run_at_a_site_that_adds_nothing_finishes_and_says_so(
    model_folders, tmp_path: Path, site: str
):
    folder = tmp_path / "model"
    shutil.copytree(model_folders["llama"], folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    model.save_pretrained(folder)
    config = config_of(folder, model={"site": site}, train={"snapshot_every": None})
    records = collected(train(config, RunFolder(tmp_path / "run")))
    assert records[-1] == EndRecord(reason="finished", step=24, tokens=24 * 64)
    values = [r for r in records if isinstance(r, MetricsRecord)][-1].values
    undefined = {name for name, value in values.items() if math.isnan(value)}
    assert undefined == {n for n, metric in METRICS.items() if metric.may_be_undefined}
    assert values["ce_delta"] == 0
    assert all(math.isfinite(loss) for loss in losses(records).values())
    [notice] = [r.message for r in records if isinstance(r, NoticeRecord)]
    assert "are the same at every token, so there is nothing to learn" in notice


def test_a_run_on_activations_beyond_float16_builds_its_features(model_folders, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(model_folders["llama"], folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e6)
    model.save_pretrained(folder)
    run = RunFolder(tmp_path / "run")
    records = collected(train(config_of(folder), run))
    assert not [r for r in records if isinstance(r, NoticeRecord)]
    assert run.snapshots() == [9, 18, 24]
    index = FeatureIndex.open(run.feature_index(24))
    assert max(index.max_activations(range(64))) > 65_504


@pytest.mark.parametrize(
    "sae",
    [{"tied_weights": True, "normalize_decoder": True}, {"normalize_decoder": True}],
)
def test_tied_and_normalized_saes_train(model_folders, tmp_path: Path, sae: dict):
    config = config_of(model_folders["gemma2"], sae=sae)
    folder = RunFolder(tmp_path / "run")
    records = collected(train(config, folder))
    assert losses(records)[24] < losses(records)[1]
    published = load_file(folder.sae)
    if sae.get("tied_weights"):
        torch.testing.assert_close(published["W_enc"].T, published["W_dec"])


def test_a_layer_that_does_not_exist_is_refused_before_anything_is_loaded(
    model_folders, tmp_path: Path
):
    config = config_of(model_folders["gemma2"], model={"layer": 11})
    with pytest.raises(ConfigError, match="Layer 11 does not exist"):
        next(train(config, RunFolder(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_gemma_model_in_float16_trains_with_a_warning(model_folders, tmp_path: Path):
    config = config_of(model_folders["gemma2"], model={"dtype": "float16"})
    records = list(train(config, RunFolder(tmp_path)))
    assert all(math.isfinite(loss) for loss in losses(records).values())
    notices = [r for r in records if isinstance(r, NoticeRecord) and "float16" in r.message]
    assert [notice.level for notice in notices] == ["warning"]
    assert isinstance(records[-1], EndRecord)
    assert records[-1].reason == "finished"


def test_a_record_of_another_kind_follows_metrics_before_a_checkpoint_refers_to_them(
    config: RunConfig, tmp_path: Path
):
    """So a consumer that stores metrics in batches can store them in time."""
    folder = RunFolder(tmp_path)
    saved = 0
    waiting: set[int] = set()
    for record in train(config, folder):
        before, (saved, _) = saved, saved_position(folder)
        assert saved == before or all(step > saved for step in waiting)
        if isinstance(record, MetricsRecord):
            waiting.add(record.step)
        else:
            waiting.clear()
    assert saved > 0
