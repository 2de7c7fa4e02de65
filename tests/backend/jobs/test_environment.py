"""What a run was started with is recorded beside it."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from backend.jobs.environment import (
    commit,
    record_environment,
    recorded_environment,
    this_environment,
)
from sae_engine.files import RunFolder
from tests.backend.jobs.bench import Bench


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_record_is_read_back_and_holds_the_installed_versions(tmp_path: Path) -> None:
    found = this_environment()
    assert found.python == platform.python_version()
    assert found.packages["torch"] == version("torch")
    assert found.packages["transformers"] == version("transformers")
    record_environment(RunFolder(tmp_path), found)
    assert recorded_environment(RunFolder(tmp_path)) == found


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"python": 3}'])
def test_a_missing_or_foreign_record_is_none(tmp_path: Path, content: bytes | None) -> None:
    folder = RunFolder(tmp_path)
    if content is not None:
        folder.environment.write_bytes(content)
    assert recorded_environment(folder) is None


def test_the_commit_is_that_of_the_checkout_and_says_whether_files_were_changed(
    tmp_path: Path,
) -> None:
    plain, clean, changed = (tmp_path / name for name in ("plain", "clean", "changed"))
    plain.mkdir()
    for folder in (clean, changed):
        folder.mkdir()
        git(folder, "init", "-q")
        (folder / "file").write_text("a")
        git(folder, "add", "file")
        git(folder, "commit", "-qm", "first")
    (changed / "file").write_text("b")
    assert commit(plain) is None
    assert commit(clean) == git(clean, "rev-parse", "HEAD")
    assert commit(changed) == git(changed, "rev-parse", "HEAD") + "-dirty"


def test_every_start_of_a_run_is_recorded(bench: Bench) -> None:
    bench.execute(lambda _: iter([]))
    first = recorded_environment(bench.folder)
    assert first is not None
    bench.execute(lambda _: iter([]))
    second = recorded_environment(bench.folder)
    assert second is not None
    assert second.recorded_at > first.recorded_at
