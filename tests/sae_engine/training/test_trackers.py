"""Metrics sent to TensorBoard and Weights & Biases, read back from the files they write."""

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from wandb.proto.wandb_internal_pb2 import Record

from sae_engine.errors import ConfigError
from sae_engine.files import RunFolder
from sae_engine.presets import resolve_config
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import MetricsRecord
from sae_engine.training.loop import train
from sae_engine.training.trackers import open_trackers

Curves = dict[str, dict[int, float]]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    yield
    wandb.teardown()  # ends its process, which reads the environment only once


def config_of(model: Path | str = "tiny-gemma2", **trackers: object) -> RunConfig:
    settings = {
        "name": "a tracked run",
        "model": {"name": str(model), "layer": 1},
        "data": {"ctx_len": 32, "heldout_tokens": 1000, "shuffle_tokens": 1000},
        "sae": {"d_sae": 64, "k": 4},
        "train": {
            "total_tokens": 1024,
            "batch_size_tokens": 64,
            "log_every": 3,
            "eval_every": 8,
            "eval_tokens": 1000,
            "ce_tokens": 256,
            "snapshot_every": None,
            **trackers,
        },
        "index": {"tokens": 1000, "snapshot_tokens": 1000},
    }
    return resolve_config(None, settings)


def curves_of(records: list[MetricsRecord]) -> Curves:
    curves: Curves = defaultdict(dict)
    for record in records:
        for name, value in record.values.items():
            curves[name][record.step] = value
    return curves


def tensorboard_curves(folder: Path) -> Curves:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


def wandb_records(folder: Path) -> list[Record]:
    """The records of the one offline run in a folder.

    wandb writes them from a process of its own, which can outlast the run's `finish`.
    """
    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while True:
        records = [Record.FromString(data) for data in log_entries(path.read_bytes())]
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < deadline, "wandb did not write the run's end"
        time.sleep(0.05)


def log_entries(content: bytes) -> Iterator[bytes]:
    """The entries of wandb's file: a LevelDB log after a header of seven bytes.

    A block of 32 KiB holds pieces: checksum (4 bytes), length (2), kind (1: whole, 2: first,
    3: middle, 4: last) and content. Fewer bytes than a piece's head at its end are padding.
    """
    block, head = 32 * 1024, 7
    place, entry = head, b""
    while place + head <= len(content):
        if block - place % block < head:
            place += block - place % block
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        if place + head + length > len(content):  # still being written
            return
        kind = content[place + 6]
        entry += content[place + head : place + head + length]
        place += head + length
        if kind in (1, 4):
            yield entry
            entry = b""


def wandb_curves(records: list[Record]) -> Curves:
    curves: Curves = defaultdict(dict)
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            step = items.pop("_step", record.history.step.num)
            for name, value in items.items():
                if not name.startswith("_"):
                    curves[name][step] = float(value)
    return curves


def assert_same_curves(found: Curves, expected: Curves) -> None:
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        assert found[name] == pytest.approx(curve, rel=1e-6, nan_ok=True), name


def test_both_trackers_record_every_metric_of_a_run(model_folders, tmp_path):
    config = config_of(model_folders["gemma2"], tensorboard=True, wandb_project="features")
    records = [r for r in train(config, RunFolder(tmp_path)) if isinstance(r, MetricsRecord)]
    expected = curves_of(records)
    assert {"loss", "fvu", "l0"} <= expected.keys()
    assert len(expected["loss"]) > 4
    assert_same_curves(tensorboard_curves(tmp_path), expected)

    written = wandb_records(tmp_path)
    curves = wandb_curves(written)
    assert curves.pop("tokens") == {record.step: record.tokens for record in records}
    assert_same_curves(curves, expected)
    run = next(r.run for r in written if r.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name) == ("features", "a tracked run")
    settings = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert settings["sae"] == config.model_dump(mode="json")["sae"]


def test_nan_and_infinity_are_recorded_as_such(tmp_path):
    trackers = open_trackers(
        config_of(tensorboard=True, wandb_project="features"), RunFolder(tmp_path), 0
    )
    values = {"fvu": math.nan, "loss": math.inf}
    for tracker in trackers:
        tracker.log(MetricsRecord(step=1, tokens=64, time=0.5, values=values))
        tracker.close()
    for curves in (tensorboard_curves(tmp_path), wandb_curves(wandb_records(tmp_path))):
        assert math.isnan(curves["fvu"][1])
        assert curves["loss"][1] == math.inf


def test_a_run_has_no_trackers_by_default(tmp_path):
    assert open_trackers(config_of(), RunFolder(tmp_path), 0) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "field", "value", "package"),
    [
        ("torch.utils.tensorboard", "tensorboard", True, "tensorboard"),
        ("wandb", "wandb_project", "features", "wandb"),
    ],
)
def test_the_error_for_a_missing_package_names_it(
    monkeypatch, tmp_path, module, field, value, package
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"package {package} is not installed; run: pip") as found:
        open_trackers(config_of(**{field: value}), RunFolder(tmp_path), 0)
    assert [problem.field for problem in found.value.problems] == [f"train.{field}"]


def test_a_missing_api_key_is_refused_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match=r"No API key configured.* WANDB_MODE=offline"):
        open_trackers(config_of(wandb_project="features"), RunFolder(tmp_path), 0)


@pytest.mark.parametrize("resumed_after", [3, 5, 8])
def test_a_resumed_run_goes_on_with_its_curves(tmp_path, monkeypatch, resumed_after: int):
    """A new run in the same folder begins others."""
    # Files of one second are ordered by this number's digits, so its tenth would come first.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    config = config_of(tensorboard=True, wandb_project="features")
    folder = RunFolder(tmp_path)
    steps = [(0, range(1, 9), 0.5), (resumed_after, range(resumed_after + 1, 11), 2.0)]
    ids = [_logged(config, folder, *logged) for logged in steps]
    assert ids[0] == ids[1]
    assert {path.stem for path in tmp_path.glob("wandb/*/run-*.wandb")} == {f"run-{ids[0]}"}
    expected = {step: 0.5 if step <= resumed_after else 2.0 for step in range(1, 11)}
    assert tensorboard_curves(tmp_path) == {"fvu": expected}
    assert _logged(config, folder, 0, range(1, 3), 4.0) != ids[0]
    assert tensorboard_curves(tmp_path) == {"fvu": {1: 4.0, 2: 4.0}}


def _logged(config: RunConfig, folder: RunFolder, step: int, steps: range, value: float) -> str:
    """Log steps of a run that continues after `step`; return its id at Weights & Biases."""
    for tracker in open_trackers(config, folder, step):
        for number in steps:
            values = {"fvu": value}
            tracker.log(MetricsRecord(step=number, tokens=64, time=0.5, values=values))
        tracker.close()
    return folder.wandb_id.read_text("utf-8")
