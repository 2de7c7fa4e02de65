"""Print the number of kernels, and those that a run compiles after `compile_all` compiled its own.

A program of its own, because other tests compile further types. Run by `test_compile_kernels`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from numba.core.dispatcher import Dispatcher

from sae_engine.compile_kernels import compile_all
from sae_engine.files import RunFolder
from sae_engine.kernels import grouping
from sae_engine.kernels.cpu import candidates, codes, rows, search, vectors
from sae_engine.presets import resolve_config
from sae_engine.training.loop import train

SHORT = {
    "sae": {"d_sae": 64, "k": 4},
    "data": {"heldout_tokens": 1000},
    "train": {"total_tokens": 2560, "ce_tokens": 256, "snapshot_every": 2},
    "index": {"tokens": 1000, "snapshot_tokens": 1000},
}


def main(folder: Path) -> None:
    kernels = {
        f"{module.__name__}.{name}": kernel
        for module in (candidates, codes, grouping, rows, search, vectors)
        for name, kernel in vars(module).items()
        if isinstance(kernel, Dispatcher)
    }
    compile_all()
    before = {name: list(kernel.signatures) for name, kernel in kernels.items()}
    for _ in train(resolve_config("quick-test", SHORT), RunFolder(folder)):
        pass
    print(len(kernels), *(name for name in kernels if kernels[name].signatures != before[name]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
