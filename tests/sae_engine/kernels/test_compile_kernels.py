"""Machine code is compiled once per version of the sources, outside the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae_engine.kernels.compiled import OUTDATED_SECONDS, open_cache, source_digest
from tests.house.repository import ROOT


def _run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_compiles_nothing_after_the_kernels_were_compiled(tmp_path: Path):
    told = _run("-m", "tests.sae_engine.kernels.compiled_in_a_run", str(tmp_path))
    count, *left = told.split()
    assert int(count) > 30
    assert left == []


def test_a_change_in_any_source_file_changes_the_digest(tmp_path: Path):
    """A function's machine code contains its callees, whatever file they are defined in."""
    (tmp_path / "cpu").mkdir()
    for name in ("caller.py", "cpu/callee.py"):
        (tmp_path / name).write_text("x = 1")
    before = source_digest(tmp_path)
    assert source_digest(tmp_path) == before
    (tmp_path / "cpu/callee.py").write_text("x = 2")
    assert source_digest(tmp_path) != before


def test_unused_machine_code_of_other_sources_is_removed_after_a_while(tmp_path: Path):
    old, recent = open_cache(tmp_path, "old"), open_cache(tmp_path, "recent")
    (old / "kernel.nbc").touch()
    before = time.time() - OUTDATED_SECONDS - 1
    os.utime(old, (before, before))
    assert open_cache(tmp_path, "recent") == recent
    assert old.exists()
    open_cache(tmp_path, "new")
    assert not old.exists()
    assert recent.exists()


def test_using_machine_code_keeps_it_from_being_removed(tmp_path: Path):
    old = open_cache(tmp_path, "old")
    before = time.time() - OUTDATED_SECONDS - 1
    os.utime(old, (before, before))
    open_cache(tmp_path, "old")
    open_cache(tmp_path, "new")
    assert old.exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        open_cache(tmp_path / "file", "digest")


def test_kernels_work_without_a_writable_cache(tmp_path: Path):
    (tmp_path / "file").touch()
    script = "from sae_engine.kernels.cpu.vectors import norm; import numpy as np\n"
    script += "print(norm(np.array([3, 4], np.float32)), norm.stats.cache_path)"
    assert _run("-c", script, XDG_CACHE_HOME=str(tmp_path / "file")).split() == ["5.0", "None"]
