"""What the shell prints is what a name says, whatever characters it holds."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from backend import store
from backend.cli.main import main
from backend.cli.tables import print_runs, summary_table, sweep_table
from backend.jobs.logs import logging_into, plain
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.presets import resolve_config

ODD_NAMES = ["\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\rb\x08c", "\x9b2Jgone", "[bold]b[/bold]"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_cannot_control_the_terminal(
    settings: Settings, database: Database, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.writing() as session:
        row = store.add_run(session, config=resolve_config("quick-test", {"name": name}))
    printed = Console(file=io.StringIO(), width=200)
    print_runs(settings, archived=False, console=printed)
    printed.print(summary_table(row))
    printed.print(sweep_table([row]))
    assert main(["lookup", name, "x", "--data-dir", str(settings.data_dir)]) == 2
    assert isinstance(printed.file, io.StringIO)
    for text in (printed.file.getvalue(), capsys.readouterr().err):
        assert plain(text) == text
        assert plain(name) in text


def test_a_log_file_cannot_control_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with logging_into([log]):
        for name in ODD_NAMES:
            logging.getLogger("run").warning("%s\nsecond line", name)
    text = log.read_text("utf-8")
    assert plain(text) == text
    assert text.count("second line") == len(ODD_NAMES)


def test_ordinary_text_stays_as_it_is() -> None:
    text = "a\tb\nc é ☃ 😀 ␛"
    assert plain(text) == text
