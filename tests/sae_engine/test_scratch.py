"""Scratch folders of killed processes are removed; those of living ones are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sae_engine.files import RunFolder, published_folder
from sae_engine.scratch import Purpose, remove_abandoned, scratch_folder

HOLDER = """
import sys
from pathlib import Path
from sae_engine.files import published_folder
from sae_engine.scratch import scratch_folder
kind, parent = sys.argv[1], Path(sys.argv[2])
make = published_folder(parent / "map") if kind == "published" else scratch_folder(parent, kind)
with make as folder:
    (folder / "large").write_bytes(b"x" * 1000)
    print("ready", flush=True)
    sys.stdin.read()
"""
KINDS = ("push", "export", "upload", "published")


@contextmanager
def holder(kind: str, parent: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder in `parent`, killed at the end."""
    command = [sys.executable, "-c", HOLDER, kind, str(parent)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_kept_while_its_process_lives_and_removed_when_it_was_killed(
    tmp_path: Path, kind: str
) -> None:
    with holder(kind, tmp_path) as process:
        [folder] = tmp_path.iterdir()
        remove_abandoned(tmp_path)
        assert (folder / "large").is_file()
        os.kill(process.pid, signal.SIGKILL)
    assert folder.is_dir()
    remove_abandoned(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("purpose", ["push", "export", "upload"])
def test_a_new_folder_replaces_abandoned_ones_but_not_held_ones(
    tmp_path: Path, purpose: Purpose
) -> None:
    (tmp_path / ".push-dead" / "saelens").mkdir(parents=True)
    with scratch_folder(tmp_path, purpose) as one, scratch_folder(tmp_path, purpose) as two:
        assert set(tmp_path.iterdir()) == {one, two}
    assert not list(tmp_path.iterdir())


def test_a_folder_is_removed_when_its_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch_folder(tmp_path, "push"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / ".push-notes").mkdir(parents=True)
    (tmp_path / ".push-notes").write_text("a file")
    (tmp_path / ".push-link").symlink_to(kept)
    (tmp_path / ".old").mkdir()
    (tmp_path / ".cache.tmp").mkdir()
    before = set(tmp_path.rglob("*"))
    remove_abandoned(tmp_path)
    remove_abandoned(tmp_path / "missing")
    assert set(tmp_path.rglob("*")) == before


def test_a_published_folder_appears_whole_under_its_name(tmp_path: Path) -> None:
    with published_folder(tmp_path / "map") as made:
        (made / "a").write_text("1")
    assert [path.name for path in tmp_path.rglob("*")] == ["map", "a"]


def test_of_a_killed_run_only_what_is_published_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for path in (folder.sae, folder.checkpoint, folder.index_corpus / "hook_0"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    (folder.checkpoints / ".last.safetensors.1234abcd.tmp").write_text("x")
    (tmp_path / "features" / ".9.1234abcd.tmp" / "arrays").mkdir(parents=True)
    folder.remove_leftovers()
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {folder.sae, folder.checkpoint}
    assert not list(folder.features.iterdir())
