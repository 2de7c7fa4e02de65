"""Numbers and times in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from frontend.html import format as words
from sae_engine.schema.features import Density


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.123456, "0.123"),
        (0.0500, "0.0500"),
        (31.456, "31.5"),
        (999.6, "1,000"),
        (12345.6, "12,346"),
        (0.000123, "1.23e-04"),
        (-0.5, "-0.500"),
        (float("nan"), "NaN"),
        (float("inf"), "inf"),
        ("NaN", "NaN"),
        ("-Infinity", "-∞"),
        (None, "–"),
    ],
)
def test_a_number_has_three_significant_digits_and_keeps_its_non_finite_name(
    value: float | str | None, text: str
) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1_000, "1k"), (500_000, "500k"), (1_234_567, "1.23M"), (2e9, "2B")],
)
def test_a_short_count_has_a_unit(value: float, text: str) -> None:
    assert words.short_count(value) == text


@pytest.mark.parametrize(
    ("place", "text"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (22, "22nd"), (113, "113th")],
)
def test_a_place_in_the_queue_is_an_ordinal(place: int, text: str) -> None:
    assert words.ordinal(place) == text


@pytest.mark.parametrize(
    ("position", "text"),
    [(1, "First in the queue"), (2, "2nd in the queue"), (21, "21st in the queue")],
)
def test_the_first_place_in_the_queue_is_a_word(position: int, text: str) -> None:
    assert words.queue_place(position) == text


def test_one_is_singular() -> None:
    assert [words.counted(n, "run") for n in (0, 1, 1024)] == ["0 runs", "1 run", "1,024 runs"]


def test_a_metric_without_a_meaning_is_not_defined_but_a_broken_one_is_nan() -> None:
    assert words.metric_text("ce_loss_score", "NaN") == "not defined"
    assert words.metric_text("top_token_share", "NaN") == "not defined"
    assert words.metric_text("loss", "NaN") == "NaN"
    assert words.metric_text("eval_fvu", "Infinity") == "∞"


def test_a_density_names_its_counts() -> None:
    density = Density(fraction=0.001234, fired=1234, seen=1_000_000)
    assert words.density(density) == "0.123% (1,234 of 1,000,000 tokens)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3_725, "1 h 02 min"),
        (90_000, "1 d 1 h"),
        (None, "–"),
        (float("inf"), "–"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "5 s"),
        (66.7, "70 s"),
        (1_471, "25 min"),
        (2 * 3_600 + 1, "3 h"),
        (400_000, "5 d"),
        (float("inf"), "–"),
    ],
)
def test_a_forecast_has_no_digits_that_it_cannot_know(seconds: float, text: str) -> None:
    assert words.roughly(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "just now"), (61, "1 min ago"), (7_300, "2 h ago"), (200_000, "2 d ago")],
)
def test_an_age_has_one_unit(seconds: float, text: str) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    assert words.age(now - timedelta(seconds=seconds), now) == text


def test_a_moment_without_time_zone_is_read_as_utc() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    naive = datetime(2029, 12, 31, 23, 59)
    assert words.elapsed(naive, None, now) == 60
    assert words.elapsed(now, naive) == 0  # written by the clocks of two machines
