"""The engine's records become rows as they come."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from datetime import timedelta

import pytest

from backend import store
from sae_engine.presets import resolve_config
from sae_engine.schema.records import (
    MetricsRecord,
    NoticeRecord,
    PhaseRecord,
    PlanRecord,
    StartRecord,
)
from tests.backend.fake_engine import measured
from tests.backend.jobs.bench import Bench

pytestmark = pytest.mark.both_databases


def test_speed_and_remaining_time_follow_from_the_measurements(bench: Bench) -> None:
    recorder = bench.recorder()
    plan = {"total_steps": 100, "total_tokens": 10_000, "d_in": 8, "d_sae": 16, "lr": 1.0}
    recorder.record(PlanRecord(**plan, device="cpu"))  # pyright: ignore[reportArgumentType]
    recorder.record(MetricsRecord(step=1, tokens=100, time=1.0, values={"tokens_per_second": 7.0}))
    row = bench.row()
    assert (row.tokens_per_second, row.eta_seconds) == (7.0, None)  # too early to tell
    recorder.record(
        MetricsRecord(step=30, tokens=3000, time=30.0, values={"tokens_per_second": 7.0})
    )
    recorder.record(PhaseRecord(phase="evaluating"))
    row = bench.row()
    assert row.tokens_per_second == pytest.approx(100)
    assert row.eta_seconds == pytest.approx(70, abs=1)
    assert row.phase == "evaluating"


def test_the_remaining_time_includes_evaluations_long_past(bench: Bench) -> None:
    recorder = bench.recorder()
    plan = {"total_steps": 100, "total_tokens": 10_000, "d_in": 8, "d_sae": 16, "lr": 1.0}
    recorder.record(PlanRecord(**plan, device="cpu"))  # pyright: ignore[reportArgumentType]
    evaluated_after = 10
    for step in range(1, 51):
        seconds = float(step) + (100 if step > evaluated_after else 0)
        recorder.record(MetricsRecord(step=step, tokens=100 * step, time=seconds, values={}))
    recorder.record(PhaseRecord(phase="evaluating"))
    row = bench.row()
    assert row.tokens_per_second == pytest.approx(100)
    assert row.eta_seconds == pytest.approx(5000 / (4900 / 149), abs=1)


@pytest.mark.parametrize(
    ("reported_ago", "remaining"), [(0, 70.0), (30, 40.0), (70, 0.0), (900, 0.0), (-5, 70.0)]
)
def test_the_remaining_time_runs_down_between_reports(
    bench: Bench, reported_ago: float, remaining: float
) -> None:
    row = bench.row()
    at = store.now()
    row.eta_seconds, row.reported_at = 70.0, at - timedelta(seconds=reported_ago)
    assert row.remaining_seconds(at) == pytest.approx(remaining)
    row.eta_seconds = None
    assert row.remaining_seconds(at) is None


def test_the_progress_of_a_phase_is_part_of_its_words_and_not_every_part_is_stored(
    bench: Bench,
) -> None:
    recorder = bench.recorder()
    for done in range(1, 1001):
        recorder.record(PhaseRecord(phase="reading", done=done, total=1000, unit="tokens"))
    words = re.fullmatch(r"reading (\d+) of 1,000 tokens", bench.row().phase or "")
    assert words is not None
    assert int(words[1]) < 1000
    recorder.record(PhaseRecord(phase="saving"))
    assert bench.row().phase == "saving"


def test_a_speed_that_is_nan_gives_no_remaining_time(bench: Bench) -> None:
    recorder = bench.recorder()
    values = {"tokens_per_second": math.nan}
    recorder.record(MetricsRecord(step=1, tokens=100, time=1.0, values=values))
    row = bench.row()
    assert (row.tokens_per_second, row.eta_seconds) == (None, None)


def test_measurements_of_a_resumed_run_at_its_checkpoint_are_merged(
    bench: Bench,
) -> None:
    """A run that was killed after its last step repeats the evaluation there."""
    first = bench.recorder()
    first.record(measured(9))
    first.record(PhaseRecord(phase="saving a checkpoint"))
    second = bench.recorder()
    second.record(StartRecord(step=9, tokens=900))
    second.record(MetricsRecord(step=9, tokens=900, time=5.0, values={"eval_fvu": 0.25}))
    second.record(PhaseRecord(phase="training"))
    with bench.database.reading() as session:
        points = store.metrics(session, bench.id)
    assert points.step.tolist() == [9]
    assert points.values_at(0) == measured(9).values | {"eval_fvu": 0.25}


@pytest.mark.parametrize(("step", "fvu"), [(0, None), (7, 0.75), (9, 0.5), (11, 0.25)])
def test_a_resumed_run_has_the_latest_values_before_its_checkpoint(
    bench: Bench, step: int, fvu: float | None
) -> None:
    first = bench.recorder()
    for at, value in [(5, 0.75), (9, 0.5), (10, 0.25)]:
        first.record(MetricsRecord(step=at, tokens=at, time=at, values={"eval_fvu": value}))
    first.record(MetricsRecord(step=6, tokens=6, time=6, values={"ce_delta": math.nan}))
    first.record(PhaseRecord(phase="killed here"))
    before = bench.row()
    assert (before.fvu, set(before.latest_metrics)) == (0.25, {"eval_fvu", "ce_delta"})
    second = bench.recorder()
    second.record(StartRecord(step=step, tokens=step))
    row = bench.row()
    assert (row.fvu, row.step, row.ce_delta) == (fvu, step, None)
    assert row.latest_metrics.get("eval_fvu") == fvu
    assert ("ce_delta" in row.latest_metrics) == (step > 6)
    second.record(MetricsRecord(step=12, tokens=12, time=12, values={"l0": 3.0}))
    second.record(PhaseRecord(phase="training"))
    assert (bench.row().fvu, bench.row().latest_metrics["l0"]) == (fvu, 3.0)


def test_a_resumed_run_does_not_repeat_what_its_notices_say(bench: Bench) -> None:
    for start in range(3):
        recorder = bench.recorder()
        for message in ("12 rows were left out.", "The text has no titles."):
            recorder.record(NoticeRecord(level="warning", message=message))
        recorder.record(NoticeRecord(level="warning", message=f"start {start}"))
        recorder.record(StartRecord(step=10, tokens=1000))
        recorder.record(NoticeRecord(level="warning", message="One latent is dead.", step=11))
        recorder.record(NoticeRecord(level="warning", message="12 rows were left out.", step=11))
    with bench.database.reading() as session:
        said = Counter((n.message, n.step) for n in store.notices(session, bench.id))
    assert said == {
        ("12 rows were left out.", None): 1,
        ("The text has no titles.", None): 1,
        **{(f"start {start}", None): 1 for start in range(3)},
        ("Resumed at step 10.", 10): 3,
        ("One latent is dead.", 11): 1,
        ("12 rows were left out.", 11): 1,
    }


def test_a_resumed_run_continues_its_own_curve(bench: Bench) -> None:
    first = bench.recorder()
    for step in range(1, 15):
        first.record(measured(step))
    first.record(PhaseRecord(phase="killed here, checkpoint at 10"))
    second = bench.recorder()
    second.record(StartRecord(step=10, tokens=1000))
    for step in (11, 12):
        second.record(measured(step))
    second.record(PhaseRecord(phase="training"))
    with bench.database.reading() as session:
        steps = store.metrics(session, bench.id).step.tolist()
        notes = [(n.step, n.kind, n.message) for n in store.notices(session, bench.id)]
    assert steps == list(range(1, 13))
    assert notes[-1] == (10, None, "Resumed at step 10.")
    row = bench.row()
    assert row.step == 12
    assert json.loads(row.metrics)["eval_fvu"] == 0.2


@pytest.mark.parametrize(("k", "stored"), [(16, 16), (None, 8), (2048, 2048)])
def test_an_imported_run_states_the_size_of_its_sae(
    bench: Bench, k: int | None, stored: int
) -> None:
    """An SAE without a fixed number of active latents leaves k, which must not exceed d_sae."""
    sae = {"pretrained": "theirs", "expansion_factor": 4}
    bench.config = resolve_config("quick-test", {"sae": sae | {"d_sae": None, "k": 8}})
    with bench.database.writing() as session:
        row = store.get_run(session, bench.id)
        row.config = bench.config.model_dump(mode="json") | {"name": "renamed"}
    plan = PlanRecord(total_steps=0, total_tokens=0, d_in=8, d_sae=4096, k=k, lr=0, device="cpu")
    bench.recorder().record(plan)
    config = store.config_of(bench.row())
    assert (config.sae.d_sae, config.sae.k, config.sae.expansion_factor) == (4096, stored, None)
    assert (config.sae.pretrained, config.name) == ("theirs", "renamed")


@pytest.mark.parametrize(("slot", "device"), [(None, "cuda:0"), ("cuda:3", "cuda:3")])
def test_a_run_keeps_what_it_chose_itself(bench: Bench, slot: str | None, device: str) -> None:
    """The process may see only the device of its slot, under another name."""
    with bench.database.writing() as session:
        row = store.get_run(session, bench.id)
        row.slot = row.device = slot
    plan = PlanRecord(
        total_steps=9, total_tokens=9, d_in=8, d_sae=16, k=3, lr=0.25, device="cuda:0"
    )
    bench.recorder().record(plan)
    assert bench.row().chosen == {"model.device": device, "train.lr": 0.25}


def test_a_trained_run_keeps_its_configuration(bench: Bench) -> None:
    before = bench.row().config
    plan = PlanRecord(total_steps=9, total_tokens=9, d_in=8, d_sae=16, k=3, lr=1, device="cpu")
    bench.recorder().record(plan)
    assert bench.row().config == before
