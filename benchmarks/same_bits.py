"""Digests of seeded runs, to show that a change left every loss and every weight as it was.

    python benchmarks/same_bits.py > before.txt     # in one checkout
    python benchmarks/same_bits.py > after.txt      # in the other, on the same machine
    diff before.txt after.txt

Trains each recipe through the REST API of a server of its own and prints one line per run: the
SHA-256 of its logged metrics and of `sae.safetensors`. Metrics that measure time are left out.
The presets for Gemma-2-2b keep their SAE and schedule and read the embedded model. It uses only
names that are fixed for callers, so it runs in an older checkout too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

EMBEDDED = {
    "model": {"name": "tiny-gemma2", "layer": 2, "dtype": "auto"},
    "data": {"dataset": "python-stdlib", "subset": None, "ctx_len": 256, "heldout_tokens": 20_000},
    "index": {"tokens": 20_000, "snapshot_tokens": 10_000},
}
SHORT = {"eval_every": 10, "ce_every": 10, "save_every": 10, "snapshot_every": 10, "log_every": 2}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "quick-test": ("quick-test", {}),
    "tiny": ("tiny", {}),
    "gemma-2-2b, short": ("gemma-2-2b", EMBEDDED | {"train": SHORT | {"total_tokens": 90_000}}),
    "gemma-2-2b-seed, short": (
        "gemma-2-2b-seed",
        EMBEDDED
        | {"data": EMBEDDED["data"] | {"num_samples": 40}, "train": SHORT | {"num_epochs": 1}},
    ),
}
TIMES = {"tokens_per_second", "lm_share", "sae_share", "buffer_share"}


def digest_of(api: httpx.Client, run: str, data: Path) -> str:
    metrics = api.get(f"runs/{run}/metrics", params={"max_points": 100_000}).json()
    series = {k: v for k, v in metrics["series"].items() if k not in TIMES}
    told = json.dumps([metrics["step"], metrics["tokens"], series], sort_keys=True)
    (weights,) = data.glob(f"runs/{run}*/sae.safetensors")
    parts = (told.encode(), weights.read_bytes())
    return "  ".join(hashlib.sha256(part).hexdigest()[:32] for part in parts)


def wait_for_end(api: httpx.Client, run: str) -> None:
    while (found := api.get(f"runs/{run}").json())["ended_at"] is None:
        time.sleep(1)
    if found["status"] != "finished":
        raise SystemExit(f"{found['name']} is {found['status']}: {found['error']}")


def measure(api: httpx.Client, data: Path, names: list[str]) -> None:
    for name in names:
        preset, config = RECIPES[name]
        run = api.post("runs", json={"preset": preset, "config": config}).raise_for_status().json()
        wait_for_end(api, run["id"])
        print(f"{name:24s} {digest_of(api, run['id'], data)}", flush=True)
    sweep = {"preset": "quick-test", "grid": {"sae.k": [8, 16], "model.layer": [1, 2]}}
    for member in api.post("sweeps", json=sweep).raise_for_status().json()["runs"]:
        wait_for_end(api, member["id"])
        print(f"{member['name']:24s} {digest_of(api, member['id'], data)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "backend.app:app", "--port", str(port)],
            env=os.environ | {"SAE_WORKBENCH_DATA_DIR": folder, "PYTHONPATH": str(Path.cwd())},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/", timeout=60) as api:
                for _ in range(120):
                    try:
                        api.get("health").raise_for_status()
                        break
                    except httpx.TransportError:
                        time.sleep(0.5)
                measure(api, Path(folder), args.recipes)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
