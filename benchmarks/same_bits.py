"""Digests of seeded runs, to show that a change alters no loss and no weight.

    python benchmarks/same_bits.py > before.txt     # in one checkout
    python benchmarks/same_bits.py > after.txt      # in the other, on the same machine
    diff before.txt after.txt

Starts the server of the current folder, trains each recipe through the REST API, and prints one
line per run: the SHA-256 of its logged metrics, except those that measure the machine, and of the
tensors of `sae.safetensors`. The presets for Gemma-2-2b keep their SAE and schedule but read the
embedded model. Uses only stable names, so it also works on an older checkout.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import httpx
from _common import parser, serving, wait_for
from safetensors.numpy import load_file

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
OF_THE_MACHINE = {"tokens_per_second", "lm_share", "sae_share", "buffer_share"}
OF_THE_MACHINE |= {"cpu_share", "memory_gib", "gpu_share", "gpu_memory_gib"}


def digest_of(api: httpx.Client, run: str, data: Path) -> str:
    metrics = api.get(f"runs/{run}/metrics", params={"max_points": 100_000}).json()
    series = {k: v for k, v in metrics["series"].items() if k not in OF_THE_MACHINE}
    curves = json.dumps([metrics["step"], metrics["tokens"], series], sort_keys=True)
    (weights,) = data.glob(f"runs/{run}*/sae.safetensors")
    tensors = load_file(weights)  # the order of a file's metadata varies
    parts = (curves.encode(), b"".join(tensors[name].tobytes() for name in sorted(tensors)))
    return "  ".join(hashlib.sha256(part).hexdigest()[:32] for part in parts)


def wait_for_end(api: httpx.Client, run: str) -> None:
    def ended() -> dict[str, Any] | None:
        found = api.get(f"runs/{run}").json()
        return None if found["ended_at"] is None else found

    found = wait_for(ended, 24 * 3600, every=1)
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
    arguments = parser(__doc__)
    arguments.add_argument("recipes", nargs="*", default=list(RECIPES))
    options = arguments.parse_args()
    command = [sys.executable, "-m", "uvicorn", "backend.app:app"]
    with (
        serving(command, PYTHONPATH=str(Path.cwd())) as (base, data),
        httpx.Client(base_url=f"{base}/api/", timeout=60) as api,
    ):
        measure(api, data, options.recipes)


if __name__ == "__main__":
    main()
