"""`backend.app:app` is made on first access, and clears up when it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from starlette.testclient import TestClient

from backend.app import create_app
from backend.settings import Settings
from tests.backend.fake_engine import fake_job

IMPORT = """
import threading
import sqlalchemy

engines = []
create_engine = sqlalchemy.create_engine


def recorded(*args, **kwargs):
    engines.append(args)
    return create_engine(*args, **kwargs)


sqlalchemy.create_engine = recorded

import backend.app

print(len(engines), threading.active_count(), "app" in vars(backend.app))
from uvicorn.importer import import_from_string

app = import_from_string("backend.app:app")
print(len(engines), app is backend.app.app)
"""


def test_importing_the_module_creates_no_engine_thread_or_file(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    environment = {**os.environ, "SAE_WORKBENCH_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported, served = done.stdout.splitlines()
    assert imported == "0 1 False"
    assert served == "2 True", "one application, made once, with an engine to read and one to write"
    assert list(tmp_path.iterdir()) == []


def test_a_start_removes_what_killed_processes_left(settings: Settings) -> None:
    left = [settings.data_dir / ".export-x", *(p / ".push-x" for p in settings.scratch_parents)]
    kept = settings.run_folder("one").path / ".checkpoint.1234abcd.tmp"
    for folder in (*left, kept):
        folder.mkdir(parents=True)
        (folder / "large").write_text("x")
    with TestClient(create_app(settings, command=fake_job), "http://127.0.0.1"):
        assert not any(folder.exists() for folder in left)
        assert kept.is_dir(), "perhaps a run is writing it"
