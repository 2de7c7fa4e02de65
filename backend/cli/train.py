"""`sae-workbench train`: rows of the database and their runs, in this terminal."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from backend import store
from backend.cli.tables import summary_table, sweep_table
from backend.jobs.logs import LOG_FORMAT
from backend.jobs.naming import member_config, named_config
from backend.jobs.recorder import Task, Terminated, Train, work
from backend.jobs.worker import engine
from backend.processes import start_of
from backend.settings import Settings
from backend.store.database import Database, open_database
from sae_engine.errors import UserError
from sae_engine.files import RunFolder, published_file
from sae_engine.preflight import check_config
from sae_engine.presets import expand_grid, resolve_config
from sae_engine.schema.config import RunConfig, by_pass
from sae_engine.schema.records import (
    AnyRecord,
    MetricsRecord,
    NoticeRecord,
    PhaseRecord,
    PlanRecord,
    SnapshotRecord,
)
from sae_engine.schema.runs import RunCreate, RunStatus

EXIT_CODES = {"finished": 0, "stopped": 0, "failed": 1, "interrupted": 130}


def train_here(
    settings: Settings,
    request: RunCreate,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    checkpoint: RunFolder | None = None,
    run_dir: Path | None = None,
    train: Train = engine,
) -> int:
    """Train in this process, with a progress bar and a table at the end; returns the exit code.

    With a `grid`, every combination of its values is a run, and those that share a pass of the
    language model are trained together. With a `checkpoint`, the run goes on from another's. With
    `run_dir`, the run's files are kept there.
    """
    if grid:
        expanded = expand_grid(request.preset, request.config, grid)
        configs = [member_config(config, request, label) for label, config in expanded]
    else:
        configs = [named_config(resolve_config(request.preset, request.config), request)]
    for config in configs:
        check_config(config)
    if run_dir is not None and run_dir.exists() and any(run_dir.iterdir()):
        raise UserError(f"'{run_dir}' is not empty; name a new folder for the run.")
    group_id = secrets.token_hex(5) if grid else None
    console = Console()
    worst = 0
    with open_database(settings.resolved_database_url) as database:
        for together in by_pass(configs):
            tasks = [
                _new_run(database, settings, config, group_id, checkpoint, run_dir, console)
                for config in together
            ]
            statuses = _work_here(database, tasks, train, console)
            worst = max(worst, *(EXIT_CODES[status] for status in statuses))
            if "interrupted" in statuses:
                break
    return worst


def _work_here(
    database: Database, tasks: Sequence[Task], train: Train, console: Console
) -> Sequence[RunStatus]:
    with (
        _log_into([task.folder.log for task in tasks]),
        _stop_on_interrupt(database, [task.run_id for task in tasks], console),
        _Bar(console, len(tasks)) as bar,
    ):
        statuses = work(database, tasks, train, on_record=bar.show)
    _print_end(database, tasks, console)
    return statuses


def _new_run(
    database: Database,
    settings: Settings,
    config: RunConfig,
    group_id: str | None,
    checkpoint: RunFolder | None,
    run_dir: Path | None,
    console: Console,
) -> Task:
    """A row, and a folder with what the run begins from."""
    with database.writing() as session:
        run_id = store.add_run(session, config=config, status="running", group_id=group_id).id
        store.set_process(session, run_id, pid=os.getpid(), created=start_of(os.getpid()))
    folder = settings.run_folder(run_id)
    if run_dir is None:
        folder.path.mkdir(parents=True)
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        folder.path.symlink_to(run_dir.resolve(), target_is_directory=True)
    if checkpoint is not None:
        with published_file(folder.checkpoint) as path:
            shutil.copyfile(checkpoint.checkpoint, path)
    where = run_dir or folder.path
    name = escape(config.name)
    made = f"Run [bold]{run_id}[/bold] '{name}' in {escape(str(where))}"
    console.print(made, highlight=False, soft_wrap=True)
    return Task(run_id, config, folder, resume=checkpoint is not None)


def _print_end(database: Database, tasks: Sequence[Task], console: Console) -> None:
    with database.reading() as session:
        rows = [store.get_run(session, task.run_id) for task in tasks]
    console.print(sweep_table(rows) if len(rows) > 1 else summary_table(rows[0]))
    for row, task in zip(rows, tasks, strict=True):
        if row.error_message:
            of = f"'{escape(row.name)}': " if len(rows) > 1 else ""
            message = f"{of}[red]{row.error_type}[/red]: {escape(row.error_message)}"
            console.print(message, highlight=False)
            console.print(f"Log: {task.folder.log}", style="dim", highlight=False)


def save_here(request: RunCreate, folder: Path) -> int:
    """Write the activations that a run would train on as files; returns the exit code."""
    from sae_engine.activations.writer import save_activations

    config = resolve_config(request.preset, request.config)
    check_config(config)
    console = Console()
    for record in save_activations(config, folder):
        match record:
            case PhaseRecord():
                console.print(record.phase, style="dim", highlight=False)
            case NoticeRecord():
                console.print(record.message, markup=False, highlight=False, soft_wrap=True)
            case _:
                pass
    return 0


class _Bar:
    """The progress bar, fed with records."""

    def __init__(self, console: Console, num_runs: int) -> None:
        self._num_runs = num_runs
        self._tokens = [0] * num_runs
        self._totals = [0] * num_runs
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("starting", total=None, values="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, number: int, record: AnyRecord) -> None:
        """Reflect one record of run `number`; with several runs, the bar is of all of them."""
        match record:
            case PhaseRecord():
                self._progress.update(self._task, description=record.phase)
            case PlanRecord():
                self._totals[number] = record.total_tokens
                self._progress.update(self._task, total=sum(self._totals) or None)
            case MetricsRecord():
                shown = ("fvu", "eval_fvu")
                values = "  ".join(
                    f"{n} {record.values[n]:.4g}" for n in shown if n in record.values
                )
                self._tokens[number] = record.tokens
                if self._num_runs > 1:
                    values = f"{self._num_runs} runs"
                self._progress.update(self._task, completed=sum(self._tokens), values=values)
            case SnapshotRecord():
                text = f"Features of step {record.step} ({record.seconds:.1f} s)"
                self._progress.console.print(text, style="dim", highlight=False)
            case NoticeRecord():
                style = "yellow" if record.level == "warning" else "dim"
                self._progress.console.print(
                    record.message, style=style, markup=False, highlight=False
                )
            case _:
                pass


@contextmanager
def _log_into(paths: Sequence[Path]) -> Generator[None]:
    """Send the log to the runs' files, where the pages show it."""
    root = logging.getLogger()
    handlers = [logging.FileHandler(path, encoding="utf-8") for path in paths]
    level = root.level
    for handler in handlers:
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


@contextmanager
def _stop_on_interrupt(
    database: Database, run_ids: Sequence[str], console: Console
) -> Generator[None]:
    """The first Ctrl-C asks the runs to stop, the second not to build features, the third ends
    it.
    """
    presses = 0

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses > 2:
            raise KeyboardInterrupt
        with database.writing() as session:
            for row in store.active_runs(session):
                if row.id in run_ids:
                    store.request_stop(session, row.id, force=presses == 2)
        console.print(
            "Stopping; features are still built. Ctrl-C again skips them."
            if presses == 1
            else "Stopping at once, without features."
        )

    def terminate(number: int, _frame: FrameType | None) -> None:
        raise Terminated(signal.Signals(number).name)

    before = signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
