"""What is compiled when installing is all that a run needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sae_engine.kernels.compiled import drop_outdated

ROOT = Path(__file__).parents[3]


def test_nothing_is_left_to_compile_for_a_run(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.sae_engine.kernels.compiled_in_a_run", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    count, *left = done.stdout.split()
    assert int(count) > 30
    assert left == []


def test_machine_code_is_dropped_when_any_source_beside_it_changes(tmp_path: Path):
    """A function's callees are part of its machine code, wherever they stand."""
    for name in ("callee.py", "caller.py"):
        (tmp_path / name).write_text("x = 1")
    drop_outdated(tmp_path)
    compiled = tmp_path / "__pycache__" / "caller.f-1.py311.1.nbc"
    compiled.touch()
    drop_outdated(tmp_path)
    assert compiled.exists()
    (tmp_path / "callee.py").write_text("x = 2")
    drop_outdated(tmp_path)
    assert not compiled.exists()
