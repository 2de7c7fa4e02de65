"""Helpers shared by the benchmarks, which run as scripts: timing, memory, a server, a small model.

Imports only the standard library, because scripts also run in the environments of other programs.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

NEVER = 10**9
"""More steps than any run has, to turn off periodic work."""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring as it is written."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def machine() -> str:
    """Processor, threads and PyTorch version, for the first line of a result."""
    import torch

    processor = platform.processor() or platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def seconds(work: Callable[[], object]) -> float:
    """Duration of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def unit_rows(rows: Any) -> Any:
    """The rows of a matrix, divided by their norms."""
    return rows / (rows**2).sum(1, keepdims=True) ** 0.5


def again(mine: Any, theirs: Any) -> str:
    """How well directions [n, d] are found among others [m, d], both with rows of norm 1."""
    best = (mine @ theirs.T).max(axis=1)
    return f"again {best.mean():.2f}, above .7 {(best > 0.7).mean():.0%}"


def wait_for(condition: Callable[[], Any], timeout_seconds: float, *, every: float = 0.25) -> Any:
    """Poll until the condition is true and return it; raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(every)
    raise TimeoutError("the condition did not become true in time")


def status_bytes(field: str) -> int:
    """A figure of this process's memory from /proc/self/status: VmRSS, VmHWM, RssAnon."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


class MemoryWatch:
    """Measures the peak of anonymous memory (pages that belong to no file) inside its block.

    Pages of mapped files do not count, because the system can drop them.
    """

    def __enter__(self) -> Self:
        self.before_bytes = self.peak_bytes = status_bytes("RssAnon")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, status_bytes("RssAnon"))


@contextmanager
def serving(command: Sequence[str | Path], **environment: str) -> Iterator[tuple[str, Path]]:
    """Run a server on a free port, given as `--port`, with an empty data folder.

    Yields its address and that folder as soon as it answers.
    """
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as data:
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            env=os.environ | {"SAE_WORKBENCH_DATA_DIR": data} | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        base = f"http://127.0.0.1:{port}"

        def is_healthy() -> bool:
            try:
                return httpx.get(f"{base}/api/health").is_success
            except httpx.TransportError:
                return False

        try:
            wait_for(is_healthy, 60)
            yield base, Path(data)
        finally:
            server.terminate()
            server.wait()


def write_gemma(folder: Path, **settings: Any) -> None:
    """Save a Gemma-2 with random weights and the embedded model's tokenizer."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from sae_engine.preflight import embedded_model_folder

    torch.manual_seed(0)
    config = Gemma2Config(**settings, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    Gemma2ForCausalLM(config).save_pretrained(folder)
    for file in embedded_model_folder().glob("tokenizer*.json"):
        shutil.copy(file, folder)


def peer_python(venv: Path, packages: list[str]) -> str:
    """The interpreter of another program's virtual environment, created with pip if missing."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [python, "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *packages], check=True)
        # If built for another PyTorch, they break transformers; nothing here needs them.
        subprocess.run([*pip, "uninstall", "-q", "-y", "torchvision", "torchaudio"], check=True)
    return str(python)
