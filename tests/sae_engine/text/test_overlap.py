"""The share of held-out text that stands in training text, against sets of tuples."""

from __future__ import annotations

import numpy as np
import pytest

from sae_engine.text.ngrams import RUN_LENGTH
from sae_engine.text.overlap import TextOverlap

CTX = 40


def rows(seed: int, count: int, vocabulary: int = 10_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, (count, CTX))


def all_at(ids: np.ndarray) -> np.ndarray:
    return np.ones(ids.shape, np.bool_)


def runs_of(ids: np.ndarray, at: np.ndarray) -> list[tuple[int, ...]]:
    return [
        tuple(row[first : first + RUN_LENGTH].tolist())
        for row, counts in zip(ids, at, strict=True)
        for first in range(CTX - RUN_LENGTH + 1)
        if counts[first : first + RUN_LENGTH].all()
    ]


def expected_share(
    held: np.ndarray, at: np.ndarray, *parts: tuple[np.ndarray, np.ndarray]
) -> float:
    known = {run for ids, where in parts for run in runs_of(ids, where)}
    runs = runs_of(held, at)
    return sum(run in known for run in runs) / len(runs)


@pytest.mark.parametrize(("vocabulary", "dropped"), [(10_000, 0.0), (10_000, 0.03), (1, 0.1)])
def test_the_share_is_that_of_the_runs_in_any_training_text(
    vocabulary: int, dropped: float
) -> None:
    held, at = rows(0, 30, vocabulary), np.random.default_rng(1).random((30, CTX)) >= dropped
    overlap = TextOverlap(held, at)
    assert overlap.share is None
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for number in range(3):
        ids = rows(10 + number, 20, vocabulary)
        ids[:2, 5 + number :] = held[4 * number : 4 * number + 2, : CTX - 5 - number]
        ids[3, :10] = held[20, :10]  # shorter than a run
        where = np.random.default_rng(20 + number).random(ids.shape) >= dropped
        overlap.read_(ids, where)
        parts.append((ids, where))
        assert overlap.share == pytest.approx(expected_share(held, at, *parts))
    assert 0 < expected_share(held, at, *parts) <= 1


def test_all_of_the_text_and_none_of_it() -> None:
    held = rows(0, 5)
    overlap = TextOverlap(held, all_at(held))
    overlap.read_(held[:, ::-1], all_at(held))
    assert overlap.share == 0
    overlap.read_(held, ~all_at(held))
    assert overlap.share == 0
    overlap.read_(held, all_at(held))
    assert overlap.share == 1


def test_rows_shorter_than_a_run_have_no_share() -> None:
    held = rows(0, 5)[:, : RUN_LENGTH - 1]
    overlap = TextOverlap(held, all_at(held))
    overlap.read_(held, all_at(held))
    assert overlap.share is None


def test_what_was_seen_is_restored_only_for_the_same_text() -> None:
    held = rows(0, 12)
    first = TextOverlap(held, all_at(held))
    assert first.state() == ""
    first.read_(held[:3], all_at(held[:3]))
    again, other = TextOverlap(held, all_at(held)), TextOverlap(held[1:], all_at(held[1:]))
    for overlap in (again, other):
        overlap.restore_("")
        assert overlap.share is None
        overlap.restore_(first.state())
    assert again.share == first.share == 3 / 12
    assert other.share is None
    again.read_(held[2:6], all_at(held[2:6]))
    assert again.share == 6 / 12
