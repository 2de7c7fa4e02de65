"""Matching the decoders of two SAEs, and laying one out on a map: time and memory.

    python benchmarks/decoder_geometry.py [--latents 65536] [--width 2304] [--map 16384]

Random rows, a tenth of them shared by both SAEs. Each part is a process of its own; memory is its
largest resident size over what it had before, pages of the SAEs' files, which the system can drop,
left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sae_engine.features.geometry.layout import map_of
from sae_engine.features.geometry.matches import match_decoders


def write_decoders(folder: Path, num_latents: int, width: int) -> tuple[Path, Path]:
    """Two files with `W_dec`; row i of the first is row i of the second for the first tenth."""
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
    assert found.all(), "a shared row has another one as its match"
    return f"matching {num_latents:,} x {num_latents:,} rows"


def lay_out(num_rows: int, width: int) -> str:
    rows = torch.nn.functional.normalize(torch.randn(num_rows, width), dim=1)
    assert np.isfinite(map_of(rows)).all()
    return f"a map of {num_rows:,} rows"


def own_bytes() -> int:
    """Resident memory that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measured(sender: Connection, work: Callable[..., str], *given: object) -> None:
    before, largest, done = own_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.02):
            largest = max(largest, own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    name = work(*given)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    sender.send(f"{name}: {seconds:.0f} s, {(largest - before) / 2**20:,.0f} MiB")


def apart(work: Callable[..., str], *given: object) -> str:
    """What `work` took, done in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measured, args=(sender, work, *given))
    process.start()
    sender.close()
    answer = receiver.recv()
    process.join()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--latents", type=int, default=65_536)
    parser.add_argument("--width", type=int, default=2_304)
    parser.add_argument("--map", type=int, default=16_384)
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, width {options.width:,}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_decoders(folder, options.latents, options.width)
        print(f"decoders of {paths[0].stat().st_size / 2**20:,.0f} MiB each")
        print(apart(match, folder, options.latents), flush=True)
    print(apart(lay_out, options.map, options.width), flush=True)


if __name__ == "__main__":
    main()
