"""Trains TopK sparse autoencoders on language-model activations, and indexes their features.

The names below are imported at their first use, so that importing the package loads no PyTorch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_engine.files import RunFolder
    from sae_engine.presets import resolve_config
    from sae_engine.sae.autoencoders import TopKSAE
    from sae_engine.training.loop import train

__all__ = ["RunFolder", "TopKSAE", "resolve_config", "train"]

_HOMES = {
    "RunFolder": "sae_engine.files",
    "TopKSAE": "sae_engine.sae.autoencoders",
    "resolve_config": "sae_engine.presets",
    "train": "sae_engine.training.loop",
}

# Read by OpenMP when PyTorch loads it: PyTorch's idle threads sleep instead of spinning, and
# leave their cores to the compiled kernels' threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae_engine' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
