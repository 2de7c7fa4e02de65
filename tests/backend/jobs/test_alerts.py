"""Which measurements raise an alert, and which do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest

from backend import store
from backend.jobs.alerts import Alert, AlertWatch
from backend.jobs.recorder import Recorder
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.presets import resolve_config
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import MetricsRecord
from sae_engine.training.member import Member

CONFIG = resolve_config("tiny", {})  # 4,096 latents, k 16
GIB = 2**30


def run(
    values: Callable[[int], dict[str, float]],
    *,
    config: RunConfig = CONFIG,
    steps: int = 200,
) -> list[Alert]:
    """The alerts of a run."""
    watch = AlertWatch(config)
    found: list[Alert] = []
    for step in range(1, steps + 1):
        record = MetricsRecord(step=step, tokens=100 * step, time=step, values=values(step))
        found += watch.look(record)
    return found


def healthy(step: int) -> dict[str, float]:
    """A falling loss with 10% noise, and some dead latents at first."""
    noise = 1 + 0.1 * math.sin(7.3 * step)
    return {"loss": noise / math.sqrt(step), "frac_dead": 0.4 if step < 3 else 0.1, "l0": 32.0}


def test_a_healthy_run_gets_no_alert() -> None:
    assert run(healthy) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_non_finite_value_raises_an_alert(value: float) -> None:
    [alert] = run(lambda step: healthy(step) | ({"loss": value} if step >= 50 else {}))
    assert (alert.kind, alert.step) == ("non_finite", 50)
    assert alert.message.startswith("Loss stopped being finite")


def test_a_loss_that_rises_by_half_diverges_but_a_single_peak_does_not() -> None:
    [alert] = run(lambda step: healthy(step) | {"loss": 0.1 if step < 100 else 0.2})
    assert alert.kind == "divergence"
    assert 100 < alert.step < 115
    assert run(lambda step: healthy(step) | {"loss": 0.4 if step == 100 else 0.1}) == []
    assert run(lambda step: healthy(step) | {"loss": step / 20 if step < 20 else 0.5}) == []


def test_dead_latents_raise_an_alert_when_they_stay_dead() -> None:
    [alert] = run(lambda step: healthy(step) | {"frac_dead": 0.0 if step < 60 else 0.45})
    assert (alert.kind, alert.step) == ("dead_latents", 62)
    assert "45%" in alert.message
    assert run(lambda step: healthy(step) | {"frac_dead": 0.45 if step % 3 else 0.1}) == []


def test_dense_latents_raise_an_alert_unless_k_is_large() -> None:
    def values(step: int) -> dict[str, float]:
        return healthy(step) | ({"frac_dense": 0.2} if step == 40 else {})

    [alert] = run(values)
    assert (alert.kind, alert.step) == ("dense_latents", 40)
    assert run(values, config=resolve_config("tiny", {"sae": {"k": 256}})) == []


@pytest.mark.parametrize(("multiple", "remedy"), [(None, "(set it)"), (10.0, "(lower it from 10)")])
def test_a_few_tokens_with_most_of_the_variance_raise_an_alert(
    multiple: float | None, remedy: str
) -> None:
    config = resolve_config("tiny", {"data": {"max_norm_multiple": multiple}})
    [alert] = run(lambda step: healthy(step) | {"top_token_share": step / 100}, config=config)
    assert (alert.kind, alert.step) == ("few_tokens", 51)
    assert "1% of the held-out tokens hold 51% of the variance" in alert.message
    assert alert.message.endswith(f"data.max_norm_multiple {remedy}.")
    assert run(lambda step: healthy(step) | {"top_token_share": 0.4}) == []


def test_much_held_out_text_in_the_training_text_raises_an_alert() -> None:
    [alert] = run(lambda step: healthy(step) | {"heldout_overlap": step / 200})
    assert (alert.kind, alert.step) == ("heldout_overlap", 21)
    assert alert.message.startswith("10% of the held-out text also occurs in the training text")
    assert run(lambda step: healthy(step) | {"heldout_overlap": 0.1}) == []


def test_a_metric_that_is_not_defined_raises_no_alert() -> None:
    undefined = {"ce_loss_score": math.nan, "eval_fvu": math.nan, "top_token_share": math.nan}
    assert run(lambda step: healthy(step) | undefined) == []
    [alert] = run(lambda step: healthy(step) | {"eval_fvu": math.inf})
    assert alert.kind == "non_finite"


def test_a_lasting_slowdown_raises_an_alert_with_the_speeds_of_the_curve_but_a_pause_does_not() -> (
    None
):
    def slower(first: int, end: int) -> list[Alert]:
        return run(
            lambda step: healthy(step) | {"tokens_per_second": 33.0 if first <= step < end else 100}
        )

    [alert] = slower(100, 200)
    assert alert.kind == "throughput"
    assert "from 100 to 33 tokens/s" in alert.message
    assert 103 < alert.step < 110
    assert slower(90, 93) == []


@pytest.mark.parametrize(
    ("free", "checkpoint", "is_low"),
    [(2 * GIB, 0, False), (GIB - 1, 0, True), (2 * GIB, GIB, True), (4 * GIB, GIB, False)],
)
def test_a_disk_without_room_for_more_checkpoints_raises_one_alert(
    free: int, checkpoint: int, is_low: bool
) -> None:
    watch = AlertWatch(CONFIG)
    alerts = [watch.look_at_disk(step, free, checkpoint) for step in (1, 2)]
    assert [[alert.kind for alert in found] for found in alerts] == [["disk"] if is_low else [], []]


def test_alerts_are_stored_with_the_run(database: Database, settings: Settings) -> None:
    with database.writing() as session:
        run_id = store.add_run(session, config=CONFIG, status="running", job="mine").id
    folder = settings.run_folder(run_id)
    folder.path.mkdir(parents=True)
    recorder = Recorder(database, run_id, Member(CONFIG, folder), job="mine", batch_seconds=0)
    measurements: Iterable[float] = (0.3, math.nan, math.nan)
    for step, loss in enumerate(measurements, 1):
        record = MetricsRecord(step=step, tokens=step, time=float(step), values={"loss": loss})
        recorder.record(record)
    with database.reading() as session:
        row = store.get_run(session, run_id)
        assert [(alert.kind, alert.step, alert.level) for alert in row.alerts] == [
            ("non_finite", 2, "warning")
        ]
