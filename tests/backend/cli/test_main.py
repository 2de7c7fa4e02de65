"""The console script: its options, what it trains, what it prints."""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend import store
from backend.cli.checkpoints import checkpoint_of, source_of
from backend.cli.fields import add_fields, field_values
from backend.cli.main import main
from backend.cli.options import grid_from, request_from
from backend.cli.train import train_here
from backend.jobs.retry import JOB_BUSY_SECONDS
from backend.settings import Settings
from backend.store.database import BUSY_TIMEOUT_SECONDS, Database
from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.presets import presets
from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import field_specs
from sae_engine.schema.records import AnyRecord, EndRecord, PhaseRecord, StopRequest
from sae_engine.schema.runs import RunCreate
from sae_engine.training.member import Member
from tests.backend.fake_engine import train as fake_train


def parsed(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_fields(parser)
    return field_values(parser.parse_args(arguments))


def test_flags_are_parsed_by_the_type_of_their_field() -> None:
    flags = ["--sae.k", "64", "--train.lr=3e-4", "--data.subset", "null", "--seed", "7"]
    flags += ["--data.streaming=false", "--data.dataset=12", "--model.name=-"]
    flags += ["--data.mixture", '[{"dataset": "a.txt", "weight": 2}]']
    assert parsed(*flags) == {
        "sae.k": 64,
        "train.lr": 3e-4,
        "data.subset": None,
        "data.streaming": False,
        "data.dataset": "12",
        "data.mixture": [{"dataset": "a.txt", "weight": 2}],
        "seed": 7,
        "model.name": "-",
    }


def test_every_field_is_an_option_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for path, spec in field_specs().items():
        assert f"--{path} " in printed
        assert path == "name" or spec.help.split()[0] in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sae.kk", "8"], "sae.kk: Unknown setting; did you mean sae.k?"),
        (["--sae.k", "no"], "sae.k: Input should be a valid integer"),
        (["--oops"], "unrecognized argument: --oops"),
        (["--sae.k"], "expected one argument"),
        (["--sae.k", "--sae.d_sae", "8"], "expected one argument"),
        (["--training.learning_rate", "1"], "It is called train.lr here"),
    ],
)
def test_a_wrong_option_is_explained_in_one_sentence(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["train", "tiny", "--data-dir", str(tmp_path), *arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert words in capsys.readouterr().err


def ask(**given: Any) -> RunCreate:
    return request_from(**({"recipe": None, "path": None, "values": {}, "name": None} | given))


def test_flags_override_the_file_and_the_file_overrides_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"preset": "quick-test", "sae": {"k": 3, "d_sae": 99}}))
    request = ask(path=path, values={"sae.k": 5})
    assert request.preset == "quick-test"
    assert request.config == {"sae": {"k": 5, "d_sae": 99}}
    assert ask(path=path, recipe="tiny").preset == "tiny"
    assert ask().preset == "tiny"


def test_a_bare_configuration_file_needs_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(presets()["tiny"].config.model_dump(mode="json")))
    request = ask(path=path)
    assert request.preset is None
    assert RunConfig.model_validate(request.config) == presets()["tiny"].config


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "Cannot read"), ("a: [", "not valid YAML"), ("- a", "holds a list")],
)
def test_a_file_that_is_not_a_configuration_is_refused(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        ask(path=path)


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--load-checkpoint", "best_model.pt"], "checkpoints are safetensors"),
        (["--load-checkpoint", "no/where"], "There is no checkpoint or run folder 'no/where'"),
        (["--load-checkpoint", "nowhere"], "There is no run 'nowhere'"),
        (["--run-dir", "."], "'.' is not empty"),
        (["--eval-only"], "--eval-only needs an SAE"),
        (["--grid", "sae.k"], "has no '='; write a line such as sae.k = 16, 32"),
        (["--grid", "sae.kk=1,2"], "Unknown setting 'sae.kk'"),
        (["--grid", "sae.k=4,4"], "A value is given twice"),
        (["--grid", "sae.k=4,8", "--run-dir", "x"], "--grid and --run-dir exclude each other"),
        (
            ["--save-activations", "x", "--grid", "sae.k=4,8"],
            "--save-activations and --grid exclude each other",
        ),
        (["--load-activations", "acts.pt"], "activation files are .safetensors"),
    ],
)
def test_a_wrong_option_of_train_is_reported(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert main(["train", "--quick-test", *arguments, "--data-dir", str(tmp_path / "data")]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nope"], "There is no preset 'nope'"),
        (["train", "tiny", "--sae.kk", "1"], "did you mean sae.k?"),
        (["train", "tiny", "--sae.k", "4096"], "lower k or raise d_sae"),
        (["train", "tiny", "--model.layer", "99"], "Layer 99 does not exist"),
        (["train", "--sae.k", "4096", "tiny"], "lower k or raise d_sae"),
        (["train", "--quick-test", "--model.layer", "98"], "Layer 98 does not exist"),
        (["train", "--model.layer=97", "--name", "x", "--quick-test"], "Layer 97 does not exist"),
        (["lookup", "nobody", "the"], "There is no run 'nobody'"),
    ],
)
def test_a_wrong_command_is_reported_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main([*arguments, "--data-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


def test_an_unknown_argument_of_other_commands_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["runs", "--nope"])
    assert exit_info.value.code == 2
    assert "--nope" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("backend.app", {"torch", "nnsight", "transformers", "streamlit", "frontend"}),
        ("backend.jobs.supervisor", {"torch", "nnsight", "transformers", "streamlit", "fastapi"}),
        ("backend.jobs.worker", {"torch", "nnsight", "transformers", "streamlit", "fastapi"}),
        ("backend.cli.main", {"torch", "sqlalchemy", "fastapi", "streamlit", "rich"}),
        ("backend.serve", {"torch", "frontend"}),
    ],
)
def test_importing_a_module_imports_nothing_heavy(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not absent & set(done.stdout.split())


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


@pytest.mark.parametrize("arguments", [["runs"], ["lookup", "a", "b"], ["train", "quick-test"]])
@pytest.mark.parametrize("folder", ["/proc/none", "{file}/below"])
def test_a_folder_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], folder: str
) -> None:
    (tmp_path / "file").touch()
    folder = folder.format(file=tmp_path / "file")
    assert main([*arguments, "--data-dir", folder]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert folder.removesuffix("/below") in error
