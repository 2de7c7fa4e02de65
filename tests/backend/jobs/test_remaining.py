"""The remaining time follows the speed of the recent part, and averages what happens rarely."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from backend.jobs.remaining import Remaining
from sae_engine.schema.records import MetricsRecord

TOKENS = 100
TOTAL = 100 * TOKENS


def remaining(intervals: Sequence[float]) -> float | None:
    """Of a run of 100 intervals, after those that took these seconds."""
    found, seconds = Remaining(), 0.0
    for number, took in enumerate([0.0, *intervals]):
        seconds += took
        found.add(MetricsRecord(step=number, tokens=number * TOKENS, time=seconds, values={}))
    return found.seconds(TOTAL)


@pytest.mark.parametrize(("before", "after"), [(1.0, 3.0), (1.0, 30.0), (4.0, 1.0)])
def test_a_machine_that_changes_its_speed_changes_the_remaining_time(
    before: float, after: float
) -> None:
    steady = remaining([before] * 30)
    assert steady == pytest.approx(70 * before)
    noticed = remaining([before] * 30 + [after] * 20)
    # The first slow intervals count as rare work until they are usual.
    assert 50 * after <= noticed <= 50 * after * 1.25  # pyright: ignore[reportOptionalOperand]


def test_rare_work_is_averaged_since_the_start_however_long_ago() -> None:
    assert remaining([1.0] * 10 + [101.0] + [1.0] * 39) == pytest.approx(50 * 1.0 + 100.0)
    assert remaining([1.0, 1.0, 21.0, 1.0] * 10) == pytest.approx(60 * (1.0 + 5.0))


def test_an_evaluation_reported_at_the_same_step_is_rare_work() -> None:
    found, seconds = Remaining(), 0.0
    for step in range(51):
        seconds += 1.0
        found.add(MetricsRecord(step=step, tokens=step * TOKENS, time=seconds, values={}))
        if step % 10 == 5:
            seconds += 8.0
            found.add(MetricsRecord(step=step, tokens=step * TOKENS, time=seconds, values={}))
    assert found.seconds(TOTAL) == pytest.approx(50 * 1.0 + 40.0)


@pytest.mark.parametrize("intervals", [[], [4.0], [1.0] * 4])
def test_too_little_says_nothing(intervals: list[float]) -> None:
    assert remaining(intervals) is None
