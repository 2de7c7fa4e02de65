"""Every way a run can end is written into its row, and its records become rows as they come."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence

import pytest

from backend import store
from backend.http.curves import metrics_series
from backend.jobs.recorder import Recorder, Task, Terminated, work
from backend.settings import Settings
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.errors import ConfigError
from sae_engine.presets import resolve_config
from sae_engine.schema.records import (
    AnyRecord,
    EndRecord,
    MetricsRecord,
    PhaseRecord,
    PlanRecord,
    StartRecord,
    StopRequest,
)
from sae_engine.training.member import Member
from tests.backend.fake_engine import TOTAL_STEPS, measured
from tests.backend.fake_engine import train as fake_train

pytestmark = pytest.mark.both_databases

ShouldStop = Callable[[], StopRequest]


class Bench:
    """One run of a database, to be worked on by an engine of the test's."""

    def __init__(self, database: Database, settings: Settings, name: str = "finish") -> None:
        self.database = database
        self.config = resolve_config("quick-test", {"name": name})
        with database.writing() as session:
            self.id = store.add_run(session, config=self.config, status="running").id
        self.folder = settings.run_folder(self.id)
        self.folder.path.mkdir(parents=True)

    def work(self, records: Callable[[ShouldStop], Iterator[AnyRecord]]) -> str:
        def train(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
            [member] = members
            return ((0, record) for record in records(member.should_stop))

        [status] = work(self.database, [self.task], train)
        return status

    @property
    def task(self) -> Task:
        return Task(self.id, self.config, self.folder, resume=False)

    def row(self) -> RunRow:
        with self.database.reading() as session:
            return store.get_run(session, self.id)


@pytest.fixture
def bench(database: Database, settings: Settings) -> Bench:
    return Bench(database, settings)


def raising(error: BaseException) -> Callable[[ShouldStop], Iterator[AnyRecord]]:
    def records(_: ShouldStop) -> Iterator[AnyRecord]:
        yield PhaseRecord(phase="training")
        raise error

    return records


def test_a_finished_run_leaves_its_curve_snapshots_notices_and_figures(bench: Bench) -> None:
    [status] = work(bench.database, [bench.task], fake_train)
    row = bench.row()
    assert status == row.status == "finished"
    assert (row.step, row.tokens, row.total_steps, row.total_tokens) == (20, 2000, 20, 2000)
    assert row.ended_at is not None
    assert (row.phase, row.eta_seconds, row.error_type) == (None, None, None)
    assert json.loads(row.metrics) == {"fvu": 0.05, "l0": 4.0, "eval_fvu": 0.1}
    with bench.database.reading() as session:
        series = metrics_series(store.metrics(session, bench.id))
        [snapshot] = store.snapshots(session, bench.id)
        alert, notice = store.notices(session, bench.id)
    assert series.step == list(range(1, TOTAL_STEPS + 1))
    assert series.series["fvu"][6] == "NaN"
    assert [v for v in series.series["eval_fvu"] if v is not None] == [0.2, 0.1]
    assert (snapshot.step, snapshot.final, snapshot.index_tokens) == (20, True, 50)
    assert (alert.kind, alert.step) == ("non_finite", 7)
    assert (notice.level, notice.message, notice.step) == ("warning", "One latent is dead.", 20)


@pytest.mark.parametrize(
    ("error", "status", "kind", "message"),
    [
        (ConfigError.of("sae.k", "Too large."), "failed", "ConfigError", "sae.k: Too large."),
        (ZeroDivisionError("a\nb"), "failed", "ZeroDivisionError", "a"),
        (MemoryError(), "failed", "MemoryError", "It gave no reason; see the log."),
        (Terminated("SIGTERM"), "interrupted", "SIGTERM", "ended from outside by SIGTERM."),
    ],
)  # fmt: skip
def test_an_engine_that_raises_ends_the_run_with_one_sentence_and_the_log(
    bench: Bench, error: BaseException, status: str, kind: str, message: str
) -> None:
    bench.folder.log.write_text("a line\nthe last line\n")
    logging.disable(logging.CRITICAL)
    try:
        assert bench.work(raising(error)) == status
    finally:
        logging.disable(logging.NOTSET)
    row = bench.row()
    assert (row.status, row.error_type) == (status, kind)
    assert (row.error_message or "").endswith(message)
    assert row.error_log_tail == "a line\nthe last line\n"
    assert "Traceback" not in (row.error_message or "")


def test_an_engine_that_stops_without_an_end_has_failed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    assert bench.work(lambda _: iter([PhaseRecord(phase="training")])) == "failed"
    assert "without saying how" in (bench.row().error_message or "")
    assert "Traceback" in caplog.text


def test_measurements_before_a_failure_are_not_lost(bench: Bench) -> None:
    def records(_: ShouldStop) -> Iterator[AnyRecord]:
        for step in range(1, 6):
            yield measured(step)
        raise ConfigError.of("", "Enough.")

    bench.work(records)
    with bench.database.reading() as session:
        assert len(store.metrics(session, bench.id)) == 5


def test_a_stop_in_the_row_reaches_the_engine(bench: Bench) -> None:
    def records(should_stop: ShouldStop) -> Iterator[AnyRecord]:
        assert should_stop() == StopRequest.NONE
        with bench.database.writing() as session:
            store.request_stop(session, bench.id, force=False)
        while should_stop() == StopRequest.NONE:
            pass
        yield EndRecord(reason="stopped", step=3, tokens=300)

    assert bench.work(records) == "stopped"
    assert bench.row().status == "stopped"


def test_quick_measurements_are_stored_together_but_not_kept_back(bench: Bench) -> None:
    """A point that came right after another is stored at the next look for a stop."""

    def num_stored() -> int:
        with bench.database.reading() as session:
            return len(store.metrics(session, bench.id))

    def records(should_stop: ShouldStop) -> Iterator[AnyRecord]:
        yield measured(1)
        assert num_stored() == 1
        yield measured(2)
        while num_stored() == 1:
            should_stop()
        yield EndRecord(reason="finished", step=2, tokens=200)

    assert bench.work(records) == "finished"


def test_speed_and_remaining_time_are_told_from_what_was_measured(bench: Bench) -> None:
    recorder = Recorder(bench.database, bench.task)
    plan = {"total_steps": 100, "total_tokens": 10_000, "d_in": 8, "d_sae": 16, "lr": 1.0}
    recorder.record(PlanRecord(**plan, device="cpu"))  # pyright: ignore[reportArgumentType]
    recorder.record(MetricsRecord(step=1, tokens=100, time=1.0, values={"tokens_per_second": 7.0}))
    row = bench.row()
    assert (row.tokens_per_second, row.eta_seconds) == (7.0, 9900 / 7)
    recorder.record(
        MetricsRecord(step=30, tokens=3000, time=30.0, values={"tokens_per_second": 7.0})
    )
    recorder.record(PhaseRecord(phase="evaluating"))
    row = bench.row()
    assert row.tokens_per_second == pytest.approx(100)
    assert row.eta_seconds == pytest.approx(70)
    assert row.phase == "evaluating"


def test_the_remaining_time_counts_an_evaluation_that_is_long_past(bench: Bench) -> None:
    recorder = Recorder(bench.database, bench.task)
    plan = {"total_steps": 100, "total_tokens": 10_000, "d_in": 8, "d_sae": 16, "lr": 1.0}
    recorder.record(PlanRecord(**plan, device="cpu"))  # pyright: ignore[reportArgumentType]
    evaluated_after = 10
    for step in range(1, 51):
        seconds = float(step) + (100 if step > evaluated_after else 0)
        recorder.record(MetricsRecord(step=step, tokens=100 * step, time=seconds, values={}))
    recorder.record(PhaseRecord(phase="evaluating"))
    row = bench.row()
    assert row.tokens_per_second == pytest.approx(100)
    assert row.eta_seconds == pytest.approx(5000 / (4900 / 149))


def test_a_speed_that_is_not_a_number_tells_no_time(bench: Bench) -> None:
    recorder = Recorder(bench.database, bench.task)
    values = {"tokens_per_second": math.nan}
    recorder.record(MetricsRecord(step=1, tokens=100, time=1.0, values=values))
    row = bench.row()
    assert (row.tokens_per_second, row.eta_seconds) == (None, None)


def test_what_a_resumed_run_measures_at_its_checkpoint_is_added_to_what_was_there(
    bench: Bench,
) -> None:
    """A run that was cut off after its last step evaluates there anew."""
    first = Recorder(bench.database, bench.task)
    first.record(measured(9))
    first.record(PhaseRecord(phase="saving a checkpoint"))
    second = Recorder(bench.database, bench.task)
    second.record(StartRecord(step=9, tokens=900))
    second.record(MetricsRecord(step=9, tokens=900, time=5.0, values={"eval_fvu": 0.25}))
    second.record(PhaseRecord(phase="training"))
    with bench.database.reading() as session:
        points = store.metrics(session, bench.id)
    assert points.step.tolist() == [9]
    assert points.values_at(0) == measured(9).values | {"eval_fvu": 0.25}


def test_a_resumed_run_continues_its_own_curve(bench: Bench) -> None:
    first = Recorder(bench.database, bench.task)
    for step in range(1, 15):
        first.record(measured(step))
    first.record(PhaseRecord(phase="killed here, checkpoint at 10"))
    second = Recorder(bench.database, bench.task)
    second.record(StartRecord(step=10, tokens=1000))
    for step in (11, 12):
        second.record(measured(step))
    second.record(PhaseRecord(phase="training"))
    with bench.database.reading() as session:
        steps = store.metrics(session, bench.id).step.tolist()
        notes = [(n.step, n.kind, n.message) for n in store.notices(session, bench.id)]
    assert steps == list(range(1, 13))
    assert notes[-1] == (10, None, "It was resumed at step 10.")
    row = bench.row()
    assert row.step == 12
    assert json.loads(row.metrics)["eval_fvu"] == 0.2


def test_runs_on_one_pass_end_each_in_its_own_way(database: Database, settings: Settings) -> None:
    benches = [Bench(database, settings, name) for name in ("finish", "diverge", "finish too")]
    assert work(database, [b.task for b in benches], fake_train) == [
        "finished",
        "failed",
        "finished",
    ]
    rows = [bench.row() for bench in benches]
    assert [row.status for row in rows] == ["finished", "failed", "finished"]
    assert rows[1].error_type == "NonFiniteLossError"
    assert rows[1].error_message == "The loss became nan at step 7."
    assert [row.step for row in rows] == [20, 0, 20]


def test_what_ends_the_pass_ends_the_runs_that_are_still_on_it(
    database: Database, settings: Settings
) -> None:
    benches = [Bench(database, settings, name) for name in ("diverge", "refuse", "finish")]
    assert work(database, [b.task for b in benches], fake_train) == ["failed"] * 3
    kinds = [bench.row().error_type for bench in benches]
    assert kinds == ["NonFiniteLossError", "UserError", "UserError"]


def test_of_runs_on_one_pass_each_is_told_what_it_was_asked(
    database: Database, settings: Settings
) -> None:
    benches = [Bench(database, settings, name) for name in ("a", "b", "c")]
    wanted = [StopRequest.NONE, StopRequest.STOP, StopRequest.FORCE]

    def train(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
        with database.writing() as session:
            store.request_stop(session, benches[1].id, force=False)
            store.request_stop(session, benches[2].id, force=True)
        while [member.should_stop() for member in members] != wanted:
            pass
        for number in range(len(members)):
            yield number, EndRecord(reason="stopped", step=1, tokens=1)

    assert work(database, [b.task for b in benches], train) == ["stopped"] * 3
