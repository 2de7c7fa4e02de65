"""The progress line of a run and the cards of its main metrics."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.runs import cards
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries
from tests.frontend.samples import make_run

_EMPTY = MetricsSeries(step=[], tokens=[], time=[], series={}, total_points=0, returned_points=0)


def test_progress_names_steps_tokens_times_and_phase() -> None:
    line = cards.progress_line(make_run())
    assert line == (
        "step 50 / 200 · 51.2k tokens · 1 min 30 s elapsed < 1 min 00 s left · training"
    )


def test_progress_of_an_ended_run_has_no_remaining_time_and_no_phase() -> None:
    line = cards.progress_line(make_run(status="finished"))
    assert line == "step 50 / 200 · 51.2k tokens · 1 min 30 s elapsed"


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
    assert all(METRICS[card.metric].title in shown for card in cards.CARDS)
    assert shown.count('title="') == len(cards.CARDS)


def test_a_value_that_is_not_finite_is_shown_and_marked() -> None:
    shown = cards.cards(make_run(metrics={"fvu": "NaN"}), _EMPTY)
    assert "wb-card broken" in shown
    assert "NaN" in shown


def test_change_compares_the_last_tenth_with_the_tenth_before() -> None:
    values: list[Any] = [9.0] * 16 + [1.0, 3.0, 2.0, None, 4.0, "NaN"]
    # 20 finite values: the tenths are (1, 3) and (2, 4).
    assert cards.change(values) == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[], [1.0] * 9, [0.0] * 20])
def test_change_is_unknown_without_enough_values_or_from_zero(values: list[Any]) -> None:
    assert cards.change(values) is None
