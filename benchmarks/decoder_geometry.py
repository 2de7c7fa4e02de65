"""Time and memory of matching the decoders of two SAEs, and of the map of one.

    python benchmarks/decoder_geometry.py [--latents 65536] [--width 2304] [--map 16384]

The rows are random, and the SAEs share a tenth of them. Each part runs in its own process. Memory
is the increase of anonymous memory; pages of the SAEs' files, which the system can drop, do not
count.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from _common import MemoryWatch, machine, parser, seconds
from safetensors.torch import save_file

from sae_engine.features.geometry.layout import map_of
from sae_engine.features.geometry.matches import match_decoders


def write_decoders(folder: Path, num_latents: int, width: int) -> tuple[Path, Path]:
    """Write two files with `W_dec`, whose first tenth of rows is the same."""
    paths = folder / "a.safetensors", folder / "b.safetensors"
    shared = torch.randn(num_latents // 10, width)
    for path in paths:
        rows = torch.randn(num_latents, width)
        rows[: len(shared)] = shared
        save_file({"W_dec": rows}, path)
    return paths


def match(folder: Path, num_latents: int) -> str:
    matches = match_decoders(folder / "a.safetensors", folder / "b.safetensors")
    num_shared = num_latents // 10
    found = matches.best_in_b[:num_shared] == np.arange(num_shared)
    assert found.all(), "a shared row is matched with another row"
    return f"matching {num_latents:,} x {num_latents:,} rows"


def lay_out(num_rows: int, width: int) -> str:
    rows = torch.nn.functional.normalize(torch.randn(num_rows, width), dim=1)
    assert np.isfinite(map_of(rows)).all()
    return f"a map of {num_rows:,} rows"


def measure(sender: Connection, work: Callable[..., str], *arguments: object) -> None:
    names: list[str] = []
    with MemoryWatch() as memory:
        taken = seconds(lambda: names.append(work(*arguments)))
    more_bytes = memory.peak_bytes - memory.before_bytes
    sender.send(f"{names[0]}: {taken:.0f} s, {more_bytes / 2**20:,.0f} MiB")


def measure_in_process(work: Callable[..., str], *arguments: object) -> str:
    """Time and memory of `work` in its own process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender, work, *arguments))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--latents", type=int, default=65_536)
    arguments.add_argument("--width", type=int, default=2_304)
    arguments.add_argument("--map", type=int, default=16_384)
    options = arguments.parse_args()
    print(f"{machine()}, width {options.width:,}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_decoders(folder, options.latents, options.width)
        print(f"decoders of {paths[0].stat().st_size / 2**20:,.0f} MiB each")
        print(measure_in_process(match, folder, options.latents), flush=True)
    print(measure_in_process(lay_out, options.map, options.width), flush=True)


if __name__ == "__main__":
    main()
