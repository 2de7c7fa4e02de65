"""Measurements packed into blocks read like those in rows, after any writes and deletions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend import store
from backend.store.database import Database
from backend.store.metric_points import Points, Row, joined, packed, points_of, unpacked
from backend.store.metrics import Packing
from backend.store.models import MetricBlockRow, MetricsRow
from sae_engine.presets import resolve_config
from sae_engine.schema.records import MetricsRecord

pytestmark = pytest.mark.both_databases

SMALL = Packing(block_points=4, rows_kept=3)
NAMES = ["fvu", "l0", "eval_fvu", "__metadata__", "v", "größe / 1"]
numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(width=32),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e308, 0.1, 32.0]),
)
measured = st.dictionaries(st.sampled_from(NAMES), numbers, max_size=4)


class Write(NamedTuple):
    """Measurements at some steps, stored together."""

    points: list[tuple[int, dict[str, float]]]


class Forget(NamedTuple):
    step: int


onward = st.builds(
    lambda first, rows: Write([(first + i, row) for i, row in enumerate(rows)]),
    st.integers(0, 40),
    st.lists(measured, min_size=1, max_size=14),
)
anywhere = st.builds(Write, st.lists(st.tuples(st.integers(0, 50), measured), max_size=5))
actions = st.lists(
    st.one_of(onward, onward, anywhere, st.builds(Forget, st.integers(0, 50))), max_size=8
)


class Naive:
    """The reference: a dictionary of dictionaries."""

    def __init__(self) -> None:
        self.points: dict[int, tuple[int, float, int, dict[str, float]]] = {}
        self.revision = 0

    def write(self, records: list[MetricsRecord]) -> None:
        self.revision += bool(records)
        for r in records:
            earlier = self.points[r.step][3] if r.step in self.points else {}
            self.points[r.step] = (r.tokens, r.time, self.revision, {**earlier, **r.values})

    def forget(self, step: int) -> None:
        self.points = {s: point for s, point in self.points.items() if s <= step}

    def latest(self) -> dict[str, float]:
        return {n: v for s in sorted(self.points) for n, v in self.points[s][3].items()}

    def metrics(self, since: int) -> list[object]:
        return [(s, *self.points[s]) for s in sorted(self.points) if s > since]

    def between(self, after: int, upto: int) -> list[object]:
        found = [(s, *point) for s, point in self.points.items() if after < point[2] <= upto]
        return sorted(found, key=lambda point: (point[3], point[0]))


def listed(points: Points) -> list[object]:
    columns = (points.step, points.tokens, points.time, points.revision)
    return [
        (*place, points.values_at(i))
        for i, place in enumerate(zip(*(column.tolist() for column in columns), strict=True))
    ]


def same(found: list[object], expected: list[object]) -> bool:
    """Equal, with NaN equal to NaN and the same signs of zeros."""
    return list(map(_exact, found)) == list(map(_exact, expected))


def _exact(point: object) -> object:
    step, tokens, time, revision, values = point  # pyright: ignore[reportGeneralTypeIssues]
    return (step, tokens, time, revision, hexed(values))


def hexed(values: Mapping[str, float]) -> dict[str, str]:
    return {name: float(value).hex() for name, value in values.items()}


def new_run(session: Session) -> str:
    return store.add_run(session, config=resolve_config("quick-test", {})).id


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.writing() as session:
        yield session


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_store_behaves_like_a_dictionary_after_any_writes_and_deletions(
    session: Session, data: st.DataObject
) -> None:
    run_id, naive = new_run(session), Naive()
    for action in data.draw(actions):
        if isinstance(action, Forget):
            latest = store.forget_after(session, run_id, action.step)
            naive.forget(action.step)
            assert hexed(latest) == hexed(naive.latest())
        else:
            records = [
                MetricsRecord(step=s, tokens=s * 2**33, time=s / 3, values=values)
                for s, values in action.points
            ]
            store.add_metrics(session, run_id, records, SMALL)
            naive.write(records)
        assert same(listed(store.metrics(session, run_id)), naive.metrics(-1))
        since = data.draw(st.integers(-1, 60))
        assert same(listed(store.metrics(session, run_id, since)), naive.metrics(since))
        after = data.draw(st.integers(0, naive.revision))
        upto = data.draw(st.integers(after, naive.revision + 1))
        found = store.metrics_between(session, run_id, after, upto)
        assert same(listed(found), naive.between(after, upto))


@pytest.mark.parametrize("num_points", [0, 6, 7, 8, 50])
def test_all_but_the_newest_points_are_packed(session: Session, num_points: int) -> None:
    run_id = new_run(session)
    records = [MetricsRecord(step=s, tokens=s, time=s, values={}) for s in range(num_points)]
    for start in range(0, num_points, 3):
        store.add_metrics(session, run_id, records[start : start + 3], SMALL)
    rows = session.scalar(select(func.count()).select_from(MetricsRow))
    blocks = session.scalar(select(func.count()).select_from(MetricBlockRow))
    assert rows is not None
    assert blocks is not None
    assert blocks == max(0, num_points - 3) // 4
    assert rows == num_points - 4 * blocks


def test_packing_by_a_failed_transaction_is_undone(database: Database) -> None:
    records = [MetricsRecord(step=s, tokens=s, time=s, values={"fvu": 0.5}) for s in range(20)]
    with database.writing() as session:
        run_id = new_run(session)
        store.add_metrics(session, run_id, records[:6], SMALL)

    def fail() -> None:
        with database.writing() as session:
            store.add_metrics(session, run_id, records[6:], SMALL)
            assert session.scalar(select(func.count()).select_from(MetricBlockRow))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.reading() as session:
        assert not session.scalar(select(func.count()).select_from(MetricBlockRow))
        assert store.metrics(session, run_id).step.tolist() == list(range(6))


def test_deleting_a_run_deletes_its_blocks(session: Session) -> None:
    run_id, other = new_run(session), new_run(session)
    records = [MetricsRecord(step=s, tokens=s, time=s, values={"fvu": 0.5}) for s in range(20)]
    for each in (run_id, other):
        store.add_metrics(session, each, records, SMALL)
    store.delete_run(session, run_id)
    assert set(session.scalars(select(MetricBlockRow.run_id))) == {other}
    assert len(store.metrics(session, other)) == 20


def test_a_long_run_is_packed_automatically_and_read_completely(session: Session) -> None:
    run_id = new_run(session)
    rng = np.random.default_rng(0)
    values = rng.random(3000)
    for start in range(0, 3000, 500):
        records = [
            MetricsRecord(step=s, tokens=s, time=s, values={"fvu": values[s]})
            for s in range(start, start + 500)
        ]
        store.add_metrics(session, run_id, records)
    assert session.scalar(select(func.count()).select_from(MetricBlockRow)) == 2
    points = store.metrics(session, run_id)
    assert points.step.tolist() == list(range(3000))
    assert points.curves["fvu"].values.tolist() == values.tolist()
    assert points.revision.tolist() == [1 + s // 500 for s in range(3000)]


rows = st.lists(measured, max_size=20).map(
    lambda each: [Row(s, s * 2**40, s / 7, s // 2, json.dumps(v)) for s, v in enumerate(each)]
)


@given(rows)
def test_unpacking_a_block_gives_the_points_that_were_packed(given_rows: list[Row]) -> None:
    points = points_of(given_rows)
    back = unpacked(packed(points))
    expected = [(*row[:4], json.loads(row.values)) for row in given_rows]
    assert same(listed(points), expected)
    assert same(listed(back), expected)
    assert back.rows() == [
        row._replace(values=other.values)
        for row, other in zip(given_rows, points.rows(), strict=True)
    ]


@given(rows, st.integers(0, 20), st.integers(0, 20))
def test_slicing_and_concatenating_gives_the_same_points(
    given_rows: list[Row], a: int, b: int
) -> None:
    points = points_of(given_rows)
    first, second = sorted((a, b))
    parts = [
        points.at(slice(0, first)),
        points.at(slice(first, second)),
        points.at(slice(second, None)),
    ]
    assert same(listed(joined(parts)), listed(points))
    assert set(joined(parts).curves) == set(points.curves)


def test_values_that_float32_holds_exactly_take_half_the_space() -> None:
    wide = np.random.default_rng(0).random(1000)
    narrow = wide.astype(np.float32).astype(np.float64)

    def size(values: list[float]) -> int:
        rows = [Row(i, i, i, 1, json.dumps({"a": value})) for i, value in enumerate(values)]
        return len(packed(points_of(rows)))

    assert size(wide.tolist()) - size(narrow.tolist()) > 3000
