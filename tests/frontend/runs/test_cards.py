"""The cards of a run, its progress and its sparklines."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.charts.series import finite_values
from frontend.runs import cards
from sae_engine.presets import resolve_config
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries, MetricValue, Run, RunStatus
from tests.frontend.samples import make_run

_EMPTY = MetricsSeries(step=[], tokens=[], time=[], series={}, total_points=0, returned_points=0)


def test_progress_names_steps_tokens_times_and_phase() -> None:
    line = cards.progress_line(make_run())
    assert line == (
        "step 50 / 200 · 51.2k tokens · 1 min 30 s elapsed · about 1 min 00 s left · training"
    )


def test_only_a_run_on_another_machine_names_its_device() -> None:
    assert cards.progress_line(make_run(device="cuda:1")).endswith("training")
    assert cards.progress_line(make_run(device="a/cuda:1")).endswith("training · on a/cuda:1")


def test_before_its_length_is_known_a_run_shows_only_what_it_does() -> None:
    progress = make_run().progress.model_copy(
        update={"step": 0, "total_steps": None, "tokens": 0, "phase": "importing PyTorch"}
    )
    progress.eta_seconds = None
    line = cards.progress_line(make_run(progress=progress))
    assert line == "1 min 30 s elapsed · importing PyTorch"


def test_progress_of_an_ended_run_has_no_remaining_time_and_no_phase() -> None:
    line = cards.progress_line(make_run(status="finished"))
    assert line == "step 50 / 200 · 51.2k tokens · 1 min 30 s elapsed"


@pytest.mark.parametrize("status", ["failed", "interrupted", "stopped", "queued"])
def test_the_bar_of_a_run_that_does_not_work_stands_still(status: RunStatus) -> None:
    progress = make_run().progress.model_copy(update={"step": 0, "total_steps": None})
    run = make_run(status=status, progress=progress)
    assert cards.fraction_done(run) == 0.0
    assert cards.fraction_done(run.model_copy(update={"status": "running"})) is None


def test_no_remaining_time_is_shown_after_the_last_step() -> None:
    run = make_run()
    progress = run.progress.model_copy(update={"eta_seconds": 0.0, "phase": "evaluating"})
    line = cards.progress_line(run.model_copy(update={"progress": progress}))
    assert line == "step 50 / 200 · 51.2k tokens · 1 min 30 s elapsed · evaluating"


@pytest.mark.parametrize(
    ("status", "step", "total", "fraction"),
    [
        ("running", 50, 200, 0.25),
        ("running", 50, None, None),
        ("running", 0, 200, None),
        ("stopped", 0, 200, 0.0),
        ("queued", 0, None, 0.0),
        ("queued", 50, 200, 0.25),
        ("finished", 50, None, 1.0),
    ],
)
def test_the_share_done_is_unknown_without_a_total_or_before_the_first_step(
    status: str, step: int, total: int | None, fraction: float | None
) -> None:
    run = make_run(status=status)
    progress = run.progress.model_copy(update={"step": step, "total_steps": total})
    assert cards.fraction_done(run.model_copy(update={"progress": progress})) == fraction


def test_every_card_carries_its_definition() -> None:
    shown = cards.cards(make_run(), _EMPTY)
    assert all(METRICS[name].title in shown for name in cards.CARDS)
    assert shown.count('title="') == len(cards.CARDS)


def test_a_value_that_is_not_finite_is_shown_and_marked() -> None:
    shown = cards.cards(make_run(metrics={"l0": "NaN"}), _EMPTY)
    assert "wb-card broken" in shown
    assert "NaN" in shown


def test_a_metric_that_is_not_defined_is_not_marked() -> None:
    shown = cards.cards(make_run(metrics={"fvu": "NaN"}), _EMPTY)
    assert "wb-card broken" not in shown
    assert "not defined" in shown


def test_change_compares_the_last_tenth_with_the_tenth_before() -> None:
    values: list[Any] = [9.0] * 16 + [1.0, 3.0, 2.0, None, 4.0, "NaN"]
    # 20 finite values: the tenths are (1, 3) and (2, 4).
    assert cards.change(values) == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[], [1.0] * 9, [0.0] * 20])
def test_change_is_unknown_without_enough_values_or_from_zero(values: list[Any]) -> None:
    assert cards.change(values) is None


@given(st.lists(st.one_of(st.none(), st.just("NaN"), st.floats(-1e3, 1e3)), max_size=300))
def test_a_sparkline_stays_inside_its_box_and_ends_at_the_last_value(
    values: list[MetricValue],
) -> None:
    drawn = cards.sparkline(values, width=100, height=20)
    points = [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", drawn)]
    finite = finite_values(values)
    assert bool(points) == (len(finite) >= 2)
    assert all(0 <= x <= 100 and 0 <= y <= 20 for x, y in points)
    if len(points) > 1:
        assert points[-1][0] == 100
        if finite[-1] == max(finite):
            assert points[-1][1] == pytest.approx(2 if max(finite) > min(finite) else 18, abs=0.1)


def imported(**changes: Any) -> Run:
    config = resolve_config("tiny", {"sae": {"pretrained": "theirs"}})
    return make_run(config=config, **changes)


def test_an_imported_run_has_no_steps_or_tokens() -> None:
    progress = make_run().progress.model_copy(
        update={"step": 0, "total_steps": 0, "tokens": 0, "phase": "evaluating"}
    )
    progress.eta_seconds = None
    run = imported(progress=progress)
    assert cards.progress_line(run) == "imported · 1 min 30 s elapsed · evaluating"
    progress.total_steps = None
    waiting = imported(progress=progress, status="queued")
    assert cards.progress_line(waiting) == "1 min 30 s elapsed · evaluating"


def test_the_cards_of_an_imported_run_are_its_evaluation() -> None:
    shown = cards.cards(imported(metrics={"eval_l0": 15.98, "eval_fvu": 0.25}), _EMPTY)
    titles = re.findall(r'<span class="t">([^<]*)', shown)
    assert titles == [METRICS[name].title for name in cards.IMPORTED_CARDS]
    assert "15.98" in shown or "16.0" in shown
    assert not {METRICS["l0"].title, METRICS["tokens_per_second"].title} & set(titles)
