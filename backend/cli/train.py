"""`sae-workbench train` and `import`: runs trained in this terminal."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from sqlalchemy.exc import DBAPIError, OperationalError

from backend import store
from backend.cli.new_runs import add_runs
from backend.cli.tables import shown, summary_table, sweep_table
from backend.jobs.execution import Train, engine, execute, exit_code, raise_terminated
from backend.jobs.logs import logging_into, plain
from backend.jobs.naming import member_config, named_config
from backend.jobs.retry import JOB_BUSY_SECONDS, when_available
from backend.settings import Settings
from backend.store.database import Database, is_locked
from backend.store.states import FIRST_PHASE
from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.preflight import check_config
from sae_engine.presets import expand_grid, resolve_config
from sae_engine.schema.config import by_pass
from sae_engine.schema.records import (
    AnyRecord,
    MetricsRecord,
    NoticeRecord,
    PhaseRecord,
    PlanRecord,
    SnapshotRecord,
    StopRequest,
)
from sae_engine.schema.runs import RunCreate, RunStatus
from sae_engine.training.member import Member


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

    With a `grid`, every combination of its values is a run; runs that can share a pass of the
    language model are trained together, and Ctrl-C keeps later passes from starting. With a
    `checkpoint`, the run continues from another's. With `run_dir`, the run's files are kept there.
    """
    if grid:
        expanded = expand_grid(request.preset, request.config, grid)
        configs = [member_config(config, request, label) for label, config in expanded]
    else:
        configs = [named_config(resolve_config(request.preset, request.config), request)]
    for config in configs:
        check_config(config)
    if run_dir is not None and run_dir.exists() and any(run_dir.iterdir()):
        raise UserError(f"'{run_dir}' is not empty; give a new folder for the run.")
    group_id = secrets.token_hex(5) if grid else None
    console = Console()
    interrupts = _Interrupts(console)
    statuses: list[RunStatus] = []
    url = settings.resolved_database_url
    with closing(Database(url, busy_seconds=JOB_BUSY_SECONDS)) as database:
        when_available(partial(_prepare, database))
        for together in by_pass(configs):
            job = store.new_job("terminal")
            members = add_runs(database, settings, together, job, group_id, checkpoint, run_dir)
            for run_id, member in members.items():
                where = shown(str(run_dir or member.folder.path))
                line = f"Run [bold]{run_id}[/bold] '{shown(member.config.name)}' in {where}"
                console.print(line, highlight=False, soft_wrap=True)
            statuses += _execute_here(database, members, train, job, console, interrupts)
            if "interrupted" in statuses or interrupts.asked() is not StopRequest.NONE:
                break
    if len(statuses) < len(configs):
        console.print(f"{len(configs) - len(statuses)} of {len(configs)} runs were not started.")
    return exit_code(statuses, signal.SIGINT)


def _prepare(database: Database) -> None:
    """Create the tables; raises `UserError`, or `OperationalError` while other writers are busy."""
    try:
        database.prepare()
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, OperationalError) and is_locked(cause):
            raise cause from None
        raise


def _execute_here(
    database: Database,
    members: Mapping[str, Member],
    train: Train,
    job: str,
    console: Console,
    interrupts: _Interrupts,
) -> Sequence[RunStatus]:
    with (
        logging_into([member.folder.log for member in members.values()]),
        interrupts.handled(),
        _Bar(console, len(members)) as bar,
    ):
        statuses = execute(
            database,
            members,
            train,
            asked=interrupts.asked,
            on_record=bar.show,
            job=job,
        )
    _print_end(database, members, console)
    return statuses


def _print_end(database: Database, members: Mapping[str, Member], console: Console) -> None:
    try:
        with database.reading() as session:
            rows = [store.get_run(session, run_id) for run_id in members]
    except DBAPIError as error:
        raise UserError(f"The database is unavailable: {error.orig}".rstrip()) from error
    console.print(sweep_table(rows) if len(rows) > 1 else summary_table(rows[0]))
    for row, member in zip(rows, members.values(), strict=True):
        if row.error_message:
            of = f"'{shown(row.name)}': " if len(rows) > 1 else ""
            message = f"{of}[red]{row.error_type}[/red]: {shown(row.error_message)}"
            console.print(message, highlight=False)
            console.print(f"Log: {member.folder.log}", style="dim", highlight=False)


def save_here(request: RunCreate, folder: Path) -> int:
    """Write the activations that a run would train on as files; returns the exit code."""
    from sae_engine.activations.writer import save_activations

    config = resolve_config(request.preset, request.config)
    check_config(config)
    console = Console()
    for record in save_activations(config, folder):
        match record:
            case PhaseRecord():
                console.print(record.text, style="dim", highlight=False)
            case NoticeRecord():
                console.print(plain(record.message), markup=False, highlight=False, soft_wrap=True)
            case _:
                pass
    return 0


class _Bar:
    """A progress bar, fed with records."""

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
        self._task = self._progress.add_task(FIRST_PHASE, total=None, values="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, number: int, record: AnyRecord) -> None:
        """Show a record of run `number`; the bar covers all runs."""
        match record:
            case PhaseRecord():
                self._progress.update(self._task, description=record.text)
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
                    plain(record.message), style=style, markup=False, highlight=False
                )
            case _:
                pass


class _Interrupts:
    """Counts Ctrl-C: the first asks the runs to stop, the second skips their features, later ones
    raise `KeyboardInterrupt`.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._presses = 0
        self._announced = 0

    def asked(self) -> StopRequest:
        """The stop request so far. Announces a new one, which a signal handler must not do."""
        presses = self._presses
        if presses > self._announced:
            self._announced = presses
            self._console.print(
                "Stopping; features are still built. Press Ctrl-C again to skip them."
                if presses == 1
                else "Stopping at once, without features."
            )
        return (StopRequest.NONE, StopRequest.STOP, StopRequest.FORCE)[min(presses, 2)]

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        self._presses += 1
        if self._presses > 2:
            raise KeyboardInterrupt

    @contextmanager
    def handled(self) -> Generator[None]:
        """Count SIGINT, and raise `Terminated` on SIGTERM, within a block."""
        before = signal.signal(signal.SIGINT, self._count)
        before_term = signal.signal(signal.SIGTERM, raise_terminated)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            signal.signal(signal.SIGTERM, before_term)
