"""What is compiled when installing is all that a run needs."""

from __future__ import annotations

from pathlib import Path

from numba.core.dispatcher import Dispatcher

from sae_engine.compile_kernels import compile_all
from sae_engine.files import RunFolder
from sae_engine.kernels import candidates, codes, grouping, rows, search, vectors
from sae_engine.kernels.compiled import drop_outdated
from sae_engine.presets import resolve_config
from sae_engine.train import train


def test_nothing_is_left_to_compile_for_a_run(tmp_path: Path):
    kernels = [
        kernel
        for module in (candidates, codes, grouping, rows, search, vectors)
        for kernel in vars(module).values()
        if isinstance(kernel, Dispatcher)
    ]
    compile_all()
    before = {kernel: kernel.signatures for kernel in kernels}
    short = {
        "sae": {"d_sae": 64, "k": 4},
        "data": {"heldout_tokens": 1000},
        "train": {"total_tokens": 2560, "ce_tokens": 256, "snapshot_every": 2},
        "index": {"tokens": 1000, "snapshot_tokens": 1000},
    }
    for _ in train(resolve_config("quick-test", short), RunFolder(tmp_path)):
        pass
    assert {kernel: kernel.signatures for kernel in kernels} == before


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
