"""Runs trained in the terminal: what starts, continues, stops and waits."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from backend import store
from backend.cli import new_runs
from backend.cli.checkpoints import checkpoint_of, source_of
from backend.cli.main import main
from backend.cli.options import grid_from
from backend.cli.train import train_here
from backend.jobs.retry import JOB_BUSY_SECONDS
from backend.settings import Settings
from backend.store.database import BUSY_TIMEOUT_SECONDS, Database
from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.schema.records import AnyRecord, EndRecord, PhaseRecord, StopRequest
from sae_engine.training.member import Member
from tests.backend.cli.test_main import ask
from tests.backend.fake_engine import train as fake_train


def test_training_in_the_terminal_adds_a_run_to_the_list(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ask(recipe="quick-test", name="finish [b]here")
    assert train_here(settings, request, train=fake_train) == 0
    with database.reading() as session:
        [row] = store.list_runs(session).rows
        assert len(store.metrics(session, row.id)) == 20
    assert (row.status, row.name, row.pid) == ("finished", "finish [b]here", os.getpid())
    printed = capsys.readouterr().out
    assert f"{row.id} 'finish [b]here'" in printed
    assert "Held-out FVU" in printed
    assert main(["runs", "--data-dir", str(settings.data_dir)]) == 0
    assert "finish [b]here" in capsys.readouterr().out


def test_a_failed_run_prints_its_error_and_exits_with_1(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ask(recipe="quick-test", name="refuse")
    assert train_here(settings, request, train=fake_train) == 1
    assert "The text is empty" in capsys.readouterr().out
    with database.reading() as session:
        [row] = store.list_runs(session).rows
    assert row.status == "failed"
    assert "Traceback" in settings.run_folder(row.id).log.read_text()


def interrupted(presses: int) -> Callable[..., Iterator[AnyRecord]]:
    """An engine that presses Ctrl-C several times and obeys the stop request."""

    def train(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
        [member] = members
        yield 0, PhaseRecord(phase="training")
        for _ in range(presses):
            os.kill(os.getpid(), signal.SIGINT)
        wanted = StopRequest.STOP if presses == 1 else StopRequest.FORCE
        while member.should_stop() != wanted:
            pass
        yield 0, EndRecord(reason="stopped", step=1, tokens=1)

    return train


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_stops_a_run_and_a_second_one_skips_its_features(
    settings: Settings, database: Database, presses: int
) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert train_here(settings, ask(recipe="quick-test"), train=interrupted(presses)) == 0
    assert signal.getsignal(signal.SIGINT) == before
    with database.reading() as session:
        assert [row.status for row in store.list_runs(session).rows] == ["stopped"]


def test_ctrl_c_during_a_write_transaction_neither_deadlocks_nor_is_lost(
    settings: Settings, database: Database
) -> None:
    """SQLite has one write lock; a handler that wanted it would wait for this very transaction."""

    def train(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
        [member] = members
        yield 0, PhaseRecord(phase="training")
        with database.writing() as session:
            [row] = store.active_runs(session)
            os.kill(os.getpid(), signal.SIGINT)
            row.notes = "written"
        assert member.should_stop() == StopRequest.STOP
        yield 0, PhaseRecord(phase="building features")
        with database.reading() as session:
            assert [row.status for row in store.active_runs(session)] == ["stopping"]
        yield 0, EndRecord(reason="stopped", step=1, tokens=1)

    began = time.monotonic()
    assert train_here(settings, ask(recipe="quick-test"), train=train) == 0
    assert time.monotonic() - began < BUSY_TIMEOUT_SECONDS / 2
    with database.reading() as session:
        [row] = store.list_runs(session).rows
    assert (row.status, row.notes) == ("stopped", "written")


def test_a_third_ctrl_c_interrupts_the_run(settings: Settings, database: Database) -> None:
    assert train_here(settings, ask(recipe="quick-test"), train=interrupted(3)) == 130
    with database.reading() as session:
        assert [row.status for row in store.list_runs(session).rows] == ["interrupted"]


def test_a_grid_trains_a_run_for_every_combination(
    settings: Settings,
    database: Database,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    grid = grid_from(["sae.k=8,16", "train.lr=1e-3,2e-3"])
    assert grid == {"sae.k": [8, 16], "train.lr": [1e-3, 2e-3]}
    request = ask(recipe="quick-test", name="finish")
    assert train_here(settings, request, grid=grid, train=fake_train) == 0
    with database.reading() as session:
        rows = store.list_runs(session).rows
    assert {row.name for row in rows} == {
        f"finish k={k} lr={lr}" for k in (8, 16) for lr in (0.001, 0.002)
    }
    assert {row.status for row in rows} == {"finished"}
    assert len({row.group_id for row in rows}) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("finish k=8 lr=0.001 finished 0.1000" in " ".join(line.split()) for line in lines)


def test_ctrl_c_stops_the_whole_grid(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"data.seed": [1, 2, 3]}  # each needs a pass of its own
    request = ask(recipe="quick-test")
    assert train_here(settings, request, grid=grid, train=interrupted(1)) == 0
    with database.reading() as session:
        assert [row.status for row in store.list_runs(session).rows] == ["stopped"]
    assert "2 of 3 runs were not started." in capsys.readouterr().out


def test_a_run_continues_from_another_runs_checkpoint(
    settings: Settings, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = RunFolder(tmp_path / "elsewhere")
    assert (
        train_here(
            settings, ask(recipe="quick-test", name="one"), run_dir=source.path, train=fake_train
        )
        == 0
    )
    assert source.checkpoint.read_text() == "10"
    (tmp_path / "elsewhere" / "config.yaml").write_text("sae: {k: 8}")
    for path in (source.path, source.checkpoint, Path("one")):
        assert checkpoint_of(source_of(path, settings)).path == source.path
    request = ask(path=source.config, name="two")
    assert train_here(settings, request, checkpoint=source, train=fake_train) == 0
    with database.reading() as session:
        newest = store.list_runs(session).rows[0]
        steps = store.metrics(session, newest.id).step.tolist()
    assert newest.config["sae"]["k"] == 8
    assert steps == list(range(11, 21))


@pytest.mark.parametrize("gone", ["last.safetensors", "previous.safetensors", None])
def test_a_continued_run_has_whatever_a_resumed_run_would_read(
    settings: Settings, database: Database, tmp_path: Path, gone: str | None
) -> None:
    source = RunFolder(tmp_path / "source")
    source.best.path.mkdir(parents=True)
    files = [
        "checkpoints/best/cfg.json", "checkpoints/best/sae.safetensors", "model.json",
        "checkpoints/last.safetensors", "checkpoints/previous.safetensors",
    ]  # fmt: skip
    for name in files:
        (source.path / name).write_text(name)
    if gone is not None:
        (source.checkpoints / gone).unlink()
    source.config.write_text("sae: {k: 8}")
    (source.best.path / ".sae.safetensors.tmp").touch()
    found: dict[str, str] = {}

    def train(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
        [member] = members
        assert member.resume
        for path in filter(Path.is_file, member.folder.path.rglob("*")):
            found[str(path.relative_to(member.folder.path))] = path.read_text()
        yield 0, EndRecord(reason="stopped", step=0, tokens=0)

    checkpoint = checkpoint_of(source_of(source.path, settings))
    assert train_here(settings, ask(path=source.config), checkpoint=checkpoint, train=train) == 0
    expected = {name: name for name in files if gone is None or not name.endswith(gone)}
    assert {name: found.get(name) for name in expected} == expected
    assert set(found) - set(expected) <= {"log.txt", "environment.json"}


@pytest.mark.parametrize("number", [0, 1])
def test_a_run_whose_folder_cannot_be_made_is_not_added(
    settings: Settings, database: Database, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"id-{n}" for n in range(2)]
    monkeypatch.setattr(store, "new_run_id", iter(ids).__next__)
    runs = settings.run_folder(ids[0]).path.parent
    theirs = runs / ids[number] / "file"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    with pytest.raises(FileExistsError):
        train_here(settings, ask(recipe="tiny"), grid={"sae.k": [8, 16]}, train=fake_train)
    with database.reading() as session:
        assert store.list_runs(session).total == 0
    assert list(runs.rglob("*")) == [theirs.parent, theirs]


@pytest.mark.parametrize("run_dir", ["/dev/null/x", "/proc/x"])
def test_a_run_dir_that_cannot_be_made_is_refused_and_leaves_no_run(
    settings: Settings, database: Database, run_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--run-dir", run_dir, "--data-dir", str(settings.data_dir)]
    assert main(["train", "--quick-test", *options]) == 2
    assert f"Cannot use '{run_dir}': " in capsys.readouterr().err
    with database.reading() as session:
        assert store.list_runs(session).total == 0


def test_runs_are_added_once_even_if_the_answer_to_the_commit_is_lost(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(transaction: Callable[[], None]) -> None:
        transaction()
        transaction()

    monkeypatch.setattr(new_runs, "when_available", twice)
    grid = {"sae.k": [8, 16]}
    assert train_here(settings, ask(recipe="quick-test"), grid=grid, train=fake_train) == 0
    with database.reading() as session:
        assert [row.status for row in store.list_runs(session).rows] == ["finished"] * 2


def test_a_run_dir_stays_empty_if_its_run_cannot_be_added(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UserError("no room")

    source, run_dir = RunFolder(tmp_path / "source"), tmp_path / "mine"
    source.checkpoints.mkdir(parents=True)
    source.checkpoint.touch()
    monkeypatch.setattr(store, "add_run", fail)
    for _ in range(2):
        with pytest.raises(UserError, match="no room"):
            train_here(
                settings, ask(recipe="tiny"), checkpoint=source, run_dir=run_dir, train=fake_train
            )
    assert not run_dir.exists()
    assert not list((settings.data_dir / "runs").iterdir())


def test_the_best_sae_of_a_run_can_be_evaluated_but_not_trained(
    settings: Settings, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    run.best.path.mkdir(parents=True)
    for path in (run.config, run.best.sae, run.sae):
        path.touch()
    assert source_of(run.sae, settings).sae.path == run.path
    for path in (run.best.path, run.best.sae):
        source = source_of(path, settings)
        assert source.sae.path == run.best.path
        with pytest.raises(UserError, match="without its optimizer"):
            checkpoint_of(source)
    with pytest.raises(UserError, match="no checkpoint to continue from"):
        checkpoint_of(source_of(run.path, settings))
    with pytest.raises(UserError, match="neither a run's folder"):
        source_of(run.checkpoints, settings)


def test_a_run_in_the_terminal_waits_for_a_database_that_is_locked_at_the_start(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    path = settings.data_dir / "workbench.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        freed = threading.Timer(JOB_BUSY_SECONDS + 0.5, lock.execute, ["ROLLBACK"])
        freed.start()
        assert train_here(settings, ask(recipe="quick-test"), train=fake_train) == 0
        freed.join()
    assert "the database is unavailable, waiting for it" in caplog.text


def test_a_terminal_does_not_wait_for_a_database_that_does_not_exist(settings: Settings) -> None:
    nowhere = "postgresql+psycopg://me@127.0.0.1:1/runs"
    settings = settings.model_copy(update={"database_url": nowhere})
    with pytest.raises(UserError, match="Cannot use the database"):
        train_here(settings, ask(recipe="quick-test"), train=fake_train)
