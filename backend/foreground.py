"""`sae-workbench train`: a row of the database and its run, in this terminal."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import psutil
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from backend import repository
from backend.db import Database
from backend.job import engine
from backend.naming import named_config
from backend.settings import Settings
from backend.tables import summary_table
from backend.work import Terminated, Train, work
from sae_engine.errors import ConfigError, UserError
from sae_engine.preflight import check_config
from sae_engine.presets import resolve_config
from sae_engine.schema.api import RunCreate
from sae_engine.schema.records import (
    AnyRecord,
    MetricsRecord,
    NoticeRecord,
    PhaseRecord,
    PlanRecord,
    SnapshotRecord,
)

DEFAULT_RECIPE = "tiny"
EXIT_CODES = {"finished": 0, "stopped": 0, "failed": 1, "interrupted": 130}


def request_from(
    *, recipe: str | None, path: Path | None, flags: Sequence[str], name: str | None
) -> RunCreate:
    """What a command line asks for: flags over the file over the recipe. Raises `UserError`."""
    overrides = read_config_file(path) if path else {}
    from_file = overrides.pop("preset", None)
    preset = recipe or from_file or (None if path else DEFAULT_RECIPE)
    overrides = _merged(overrides, overrides_from(flags))
    return RunCreate(preset=preset, config=overrides, name=name, notes="")


def read_config_file(path: Path) -> dict[str, Any]:
    """A YAML file's configuration tree, which may also name a `preset`."""
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(
            f"'{path}' holds a {type(tree).__name__}; "
            "it should hold fields such as `sae: {k: 32}`."
        )
    return cast(dict[str, Any], tree)


def overrides_from(flags: Sequence[str]) -> dict[str, Any]:
    """`--sae.k 64 --train.lr=3e-4` as a nested dict; values are read as YAML, `3e-4` as a number
    too.
    """
    nested: dict[str, Any] = {}
    waiting = list(flags)
    while waiting:
        flag = waiting.pop(0)
        if not flag.startswith("--"):
            raise UserError(
                f"'{flag}' is not expected here; write fields as --section.field VALUE."
            )
        field, has_value, text = flag[2:].partition("=")
        if not has_value:
            if not waiting or waiting[0].startswith("--"):
                raise UserError(f"{flag} lacks its value.")
            text = waiting.pop(0)
        section = nested
        *parents, last = field.split(".")
        for parent in parents:
            below: object = section.setdefault(parent, {})
            if not isinstance(below, dict):
                raise ConfigError.of(field, f"'{parent}' was given a value of its own.")
            section = cast(dict[str, Any], below)
        section[last] = _value(text)
    return nested


def _value(text: str) -> Any:
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text):
        return float(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if value is None or isinstance(value, bool | int | float | str) else text


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _merged(cast(Any, below), cast(Any, value)) if both else value
    return merged


def train_here(settings: Settings, request: RunCreate, *, train: Train = engine) -> int:
    """Train in this process, with a progress bar and a table at the end; returns the exit code."""
    config = resolve_config(request.preset, request.config)
    check_config(config)
    config = named_config(config, request)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.resolved_database_url)
    database.prepare()
    process = psutil.Process()
    with database.writing() as session:
        run_id = repository.add_run(session, config=config, status="running").id
        repository.set_process(session, run_id, pid=process.pid, created=process.create_time())
    folder = settings.run_folder(run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(f"Run [bold]{run_id}[/bold] '{config.name}' in {folder.path}", highlight=False)
    with _log_into(folder.log), _stop_on_interrupt(database, run_id, console), _Bar(console) as bar:
        status = work(database, run_id, config, folder, train, resume=False, on_record=bar.show)
    with database.reading() as session:
        row = repository.get_run(session, run_id)
        console.print(summary_table(row))
        if row.error_message:
            console.print(f"[red]{row.error_type}[/red]: {row.error_message}", highlight=False)
            console.print(f"Log: {folder.log}", style="dim", highlight=False)
    database.close()
    return EXIT_CODES[status]


class _Bar:
    """The progress bar, fed with records."""

    def __init__(self, console: Console) -> None:
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

    def show(self, record: AnyRecord) -> None:
        """Reflect one record."""
        match record:
            case PhaseRecord():
                self._progress.update(self._task, description=record.phase)
            case PlanRecord():
                self._progress.update(self._task, total=record.total_tokens)
            case MetricsRecord():
                shown = ("fvu", "eval_fvu")
                values = "  ".join(
                    f"{n} {record.values[n]:.4g}" for n in shown if n in record.values
                )
                self._progress.update(self._task, completed=record.tokens, values=values)
            case SnapshotRecord():
                text = f"Features of step {record.step} ({record.seconds:.1f} s)"
                self._progress.console.print(text, style="dim", highlight=False)
            case NoticeRecord():
                style = "yellow" if record.level == "warning" else "dim"
                self._progress.console.print(record.message, style=style, highlight=False)
            case _:
                pass


@contextmanager
def _log_into(path: Path) -> Generator[None]:
    """Send the log to the run's file, where the pages show it."""
    root = logging.getLogger()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


@contextmanager
def _stop_on_interrupt(database: Database, run_id: str, console: Console) -> Generator[None]:
    """The first Ctrl-C asks the run to stop, the second not to build features, the third ends
    it.
    """
    presses = 0

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses > 2:
            raise KeyboardInterrupt
        with database.writing() as session:
            repository.request_stop(session, run_id, force=presses == 2)
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
