"""Runs without training: an SAE from elsewhere is published, evaluated and indexed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sae_engine.errors import UserError
from sae_engine.estimate import describe_model, estimate, index_bytes, model_shape
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from sae_engine.interop.description import Description
from sae_engine.interop.export import export_saelens, published_step
from sae_engine.interop.load import load_pretrained
from sae_engine.interop.places import place_of
from sae_engine.presets import resolve_config
from sae_engine.sae.autoencoders import SAE, JumpReLUSAE
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import (
    AnyRecord,
    EndRecord,
    FailureRecord,
    MetricsRecord,
    NoticeRecord,
    PlanRecord,
    SnapshotRecord,
    StopRequest,
)
from sae_engine.training.loop import train, train_together
from sae_engine.training.member import Member
from sae_engine.training.pretrained import differences
from tests.sae_engine.sae.test_autoencoders import random_jumprelu, random_sae
from tests.sae_engine.training.test_loop import config_of


def assert_same_file(got: Path, wanted: Path) -> None:
    """The same tensors and metadata; the order of the metadata in the file is not fixed."""
    with safe_open(got, "pt") as one, safe_open(wanted, "pt") as other:
        assert one.metadata() == other.metadata()
    tensors = load_file(wanted)
    assert load_file(got).keys() == tensors.keys()
    for name, tensor in load_file(got).items():
        assert torch.equal(tensor, tensors[name]), name


def stop_after(
    records: list[AnyRecord], kind: type, request: StopRequest
) -> Callable[[], StopRequest]:
    def should_stop() -> StopRequest:
        return request if any(isinstance(r, kind) for r in records) else StopRequest.NONE

    return should_stop


def values_of(records: list[AnyRecord]) -> dict[str, float]:
    return [r for r in records if isinstance(r, MetricsRecord)][-1].values


@pytest.fixture
def topk(tmp_path: Path) -> Path:
    """A published TopK SAE of the width of the tests' models."""
    path = tmp_path / "sae.safetensors"
    random_sae(3, d_in=32, d_sae=64).folded(1.0).save(path)
    return path


@pytest.fixture
def inspecting(model_folders) -> Callable:
    def config(path: Path, **sections: dict):
        return config_of(model_folders["gemma2"], sae={"pretrained": str(path)}, **sections)

    return config


def test_the_sae_of_a_training_run_gets_the_same_metrics_and_features(
    model_folders, inspecting, tmp_path: Path
):
    trained = RunFolder(tmp_path / "trained")
    before = list(train(config_of(model_folders["gemma2"]), trained))
    folder = RunFolder(tmp_path / "inspected")
    after = list(train(inspecting(trained.path), folder))

    assert [r for r in after if isinstance(r, NoticeRecord)] == []
    plan = next(r for r in after if isinstance(r, PlanRecord))
    assert (plan.total_steps, plan.d_in, plan.d_sae) == (0, 32, 64)
    assert (plan.dtype, plan.pretrained_format) == ("float32", "sae-workbench")
    assert after[-1] == EndRecord(reason="finished", step=0, tokens=0)
    for name in ("eval_fvu", "eval_l0", "frac_alive", "ce_delta", "ce_loss_score"):
        assert values_of(after)[name] == pytest.approx(values_of(before)[name], rel=1e-5), name
    assert_sizes_are_bounded(config_of(model_folders["gemma2"]), trained)
    assert_sizes_are_bounded(inspecting(trained.path), folder)
    assert_same_file(folder.sae, trained.sae)
    described = json.loads(trained.sae_config.read_text())
    assert described.pop("step") == published_step(trained) == 24
    assert json.loads(folder.sae_config.read_text()) == described
    assert published_step(folder) is None
    best = json.loads(trained.best.sae_config.read_text())["step"]
    evaluated = {r.step: r.values["eval_fvu"] for r in metrics_of(before)}
    assert best == min(evaluated, key=lambda step: evaluated[step])
    ours = FeatureIndex.open(folder.feature_index(0))
    theirs = FeatureIndex.open(trained.feature_index(24))
    assert [ours.feature(i).top_tokens for i in range(64)] == [
        theirs.feature(i).top_tokens for i in range(64)
    ]


def metrics_of(records: list[AnyRecord]) -> list[MetricsRecord]:
    found = (r for r in records if isinstance(r, MetricsRecord))
    return [r for r in found if "eval_fvu" in r.values]


def assert_sizes_are_bounded(config, folder: RunFolder):
    """No folder is larger than its estimate."""
    shape = model_shape(describe_model(config.model))
    *snapshots, final = folder.snapshots()
    for step in snapshots:
        most = index_bytes(config, shape, config.index.snapshot_tokens)
        assert size_of(folder.feature_index(step)) <= most
    assert size_of(folder.feature_index(final)) <= index_bytes(config, shape, config.index.tokens)
    assert size_of(folder.path) <= estimate(config, gpu=False).disk_bytes


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_gemma_scope_file_is_published_indexed_and_evaluated(inspecting, tmp_path: Path):
    import numpy as np

    sae = random_jumprelu(0, d_in=32, d_sae=64)
    sae.threshold.fill_(8.0)
    path = tmp_path / "gemma-scope-2b-pt-res/layer_1/width_64/params.npz"
    path.parent.mkdir(parents=True)
    tensors = {name: tensor.numpy() for name, tensor in sae.state_dict().items()}
    np.savez(path, **(tensors | {"W_enc": sae.W_enc.detach().T.numpy()}))
    folder = RunFolder(tmp_path / "run")
    records = list(train(inspecting(path), folder))

    notices = [r.message for r in records if isinstance(r, NoticeRecord)]
    assert len(notices) == 1
    assert "this SAE was trained on google/gemma-2-2b" in notices[0]
    published = SAE.load(folder.sae)
    assert isinstance(published, JumpReLUSAE)
    torch.testing.assert_close(published.W_dec.norm(dim=1), torch.ones(64))
    index = FeatureIndex.open(folder.feature_index(0))
    active = sum(index.feature(i).density.fired for i in range(64))
    assert active / index.num_tokens == pytest.approx(values_of(records)["eval_l0"])
    assert "ce_delta" in values_of(records)


def test_an_sae_of_another_width_is_refused_with_both_widths(inspecting, tmp_path: Path):
    random_sae(0).folded(1.0).save(tmp_path / "sae.safetensors")
    with pytest.raises(UserError, match=r"width 6, but those of .* at model\.layers\.1 have width"):
        list(train(inspecting(tmp_path / "sae.safetensors"), RunFolder(tmp_path / "run")))


def test_an_sae_with_a_nan_is_refused_and_not_published(inspecting, topk: Path, tmp_path: Path):
    sae = random_sae(3, d_in=32, d_sae=64).folded(1.0)
    with torch.no_grad():
        sae.b_enc[3] = torch.nan
    sae.save(topk)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="NaN or infinite"):
        list(train(inspecting(topk), folder))
    assert not folder.sae.exists()


def test_a_stop_while_the_model_loads_publishes_nothing(inspecting, topk: Path, tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    records = list(train(inspecting(topk), folder, should_stop=lambda: StopRequest.STOP))
    assert records[-1] == EndRecord(reason="stopped", step=0, tokens=0)
    assert not folder.sae.exists()


def test_a_stop_builds_the_features_but_skips_the_cross_entropy(
    inspecting, topk: Path, tmp_path: Path
):
    records: list[AnyRecord] = []
    should_stop = stop_after(records, PlanRecord, StopRequest.STOP)
    for record in train(inspecting(topk), RunFolder(tmp_path / "run"), should_stop=should_stop):
        records.append(record)
    assert records[-1] == EndRecord(reason="stopped", step=0, tokens=0)
    assert any(isinstance(r, SnapshotRecord) for r in records)
    assert "ce_delta" not in values_of(records)


def test_a_forced_stop_keeps_the_sae_and_builds_no_features(inspecting, topk: Path, tmp_path: Path):
    records: list[AnyRecord] = []
    folder = RunFolder(tmp_path / "run")
    should_stop = stop_after(records, PlanRecord, StopRequest.FORCE)
    for record in train(inspecting(topk), folder, should_stop=should_stop):
        records.append(record)
    assert records[-1] == EndRecord(reason="stopped", step=0, tokens=0)
    assert folder.snapshots() == []
    assert_same_file(folder.sae, topk)
    assert not folder.index_corpus.exists()


def test_a_member_whose_sae_cannot_be_read_does_not_stop_the_others(
    inspecting, topk: Path, tmp_path: Path
):
    broken = tmp_path / "broken.safetensors"
    save_file({"weights": torch.zeros(1)}, broken)
    members = [
        Member(inspecting(path), RunFolder(tmp_path / name))
        for name, path in (("a", broken), ("b", topk))
    ]
    last = dict(train_together(members))
    assert isinstance(last[0], FailureRecord)
    assert "is not a supported SAE" in last[0].message
    assert last[1] == EndRecord(reason="finished", step=0, tokens=0)


def write_saelens(folder: Path, sae: SAE, **config: object) -> Path:
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in sae.state_dict().items()}
    tensors["W_enc"] = sae.W_enc.detach().T.contiguous()
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "topk", "k": 4, **config}))
    return folder


def test_a_topk_that_ranks_by_pre_activation_keeps_its_rule_everywhere(inspecting, tmp_path: Path):
    """In the published file, its metrics, its index, the index's copy, and an export of it."""
    theirs = random_sae(3, d_in=32, d_sae=64, ranks_by_norm=False)
    folder = RunFolder(tmp_path / "run")
    path = write_saelens(tmp_path / "theirs", theirs)
    records = list(train(inspecting(path), folder))

    index = FeatureIndex.open(folder.feature_index(0))
    export_saelens(folder, tmp_path / "export")
    x = 3 * torch.randn(500, 32)
    by_norm = random_sae(3, d_in=32, d_sae=64)
    copies = [SAE.load(folder.sae), SAE.load(next(folder.feature_index(0).glob("*sae*")))]
    for copy in [*copies, load_pretrained(tmp_path / "export").sae]:
        assert torch.equal(copy(x), theirs(x))
        assert not torch.allclose(copy(x), by_norm(x))
    active = sum(index.feature(i).density.fired for i in range(64))
    assert active / index.num_tokens == pytest.approx(values_of(records)["eval_l0"])
    assert "ce_delta" in values_of(records)


@pytest.mark.parametrize("hook_name", ["blocks.1.hook_resid_mid", "blocks.0.hook_resid_pre"])
def test_an_sae_of_a_place_without_a_name_needs_a_hook_point(
    inspecting, tmp_path: Path, hook_name: str
):
    sae = random_sae(3, d_in=32, d_sae=64)
    path = write_saelens(tmp_path / "theirs", sae, metadata={"hook_name": hook_name})
    with pytest.raises(UserError, match=f"trained on {hook_name}: .*set model.hook_point"):
        list(train(inspecting(path), RunFolder(tmp_path / "run")))


@pytest.mark.parametrize(
    ("hook_name", "words"),
    [
        ("blocks.1.hook_resid_post", None),
        ("blocks.2.hook_resid_pre", None),
        ("blocks.2.hook_resid_post", "model.layer is 1, but its SAELens files say"),
        ("blocks.1.hook_mlp_out", "model.site is resid_post"),
        ("model.layers.1.mlp", r"model.hook_point is model.layers.1 \(output\)"),
        ("model.layers.1.input", r"trained on model.layers.1 \(input\)"),
    ],
)
def test_another_place_than_the_files_name_is_noted(hook_name: str, words: str | None):
    config = resolve_config(None, {"model": {"layer": 1}})
    described = Description("saelens", None, place_of(hook_name), [], {})
    notes = differences(config, "model.layers.1", described)
    assert len(notes) == (words is not None)
    assert words is None or re.search(words, notes[0])


@pytest.mark.parametrize(
    ("hook_name", "hook_point", "hook_io", "is_same"),
    [
        ("blocks.3.hook_mlp_out", "model.layers.3.mlp", "output", True),
        ("blocks.3.hook_mlp_out", "model.layers.3", "output", False),
        ("blocks.3.hook_mlp_out", "model.layers.3.mlp", "input", False),
        ("blocks.3.hook_mlp_out", "model.layers.2.mlp", "output", False),
        ("blocks.3.hook_attn_out", "transformer.h.3.attn", "output", True),
        ("blocks.3.hook_attn_out", "transformer.h.3.mlp", "output", False),
        ("blocks.3.hook_resid_post", "model.layers.3", "output", True),
        ("blocks.3.hook_resid_post", "model.layers.3", "input", False),
        ("blocks.3.hook_resid_pre", "model.layers.3", "input", True),
        ("blocks.3.hook_resid_post", "model.layers.3.mlp", "output", False),
    ],
)
def test_a_hook_point_is_compared_with_the_layer_and_site_of_the_files(
    hook_name: str, hook_point: str, hook_io: str, is_same: bool
):
    config = resolve_config(None, {"model": {"hook_point": hook_point, "hook_io": hook_io}})
    described = Description("saelens", None, place_of(hook_name), [], {})
    notes = differences(config, hook_point, described)
    start = f"model.hook_point is {hook_point} ({hook_io}), but its SAELens files say"
    assert [note.startswith(start) for note in notes] == [True] * (not is_same)


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_the_configuration_states_the_size_that_was_loaded(
    inspecting, topk: Path, tmp_path: Path, kind: str
):
    sae, path = SAE.load(topk), topk
    if kind == "jumprelu":
        sae, path = random_jumprelu(0, d_in=32, d_sae=16), tmp_path / "params.safetensors"
        tensors = sae.state_dict() | {"W_enc": sae.W_enc.detach().T}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    folder = RunFolder(tmp_path / "run")
    config = inspecting(path)
    plan = next(r for r in train(config, folder) if isinstance(r, PlanRecord))
    assert (plan.d_sae, plan.k) == (sae.d_sae, sae.k)
    stated = RunConfig.model_validate(yaml.safe_load(folder.config.read_text()))
    assert stated.sae.d_sae == sae.d_sae
    assert stated.sae.k == (sae.k or min(config.sae.k, sae.d_sae))
    assert stated.data == config.data
