"""What holds for every test: no setting of the person who runs them, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import beartype  # before nnsight, which gives every object a `save` that beartype stumbles over
import hypothesis
import pytest
from jaxtyping import install_import_hook

for _name in [name for name in os.environ if name.startswith("SAE_WORKBENCH_")]:
    del os.environ[_name]
os.environ["SAE_WORKBENCH_NICENESS"] = "0"  # else other tests starve the jobs that one waits for
# There are more processes than cores; there, threads that spin while they wait take the most time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["STREAMLIT_BROWSER_GATHER_USAGE_STATS"] = "false"
if not any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/dxg")):
    # Before anything imports Triton: its kernels run on the CPU then, as Python.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Shapes in signatures are checked while tests run, and cost nothing in use.
install_import_hook(
    [
        "sae_engine.activations.files",
        "sae_engine.text.packing",
        "sae_engine.features.geometry.layout",
        "sae_engine.features.geometry.rows",
        "sae_engine.training.evaluate",
        "sae_engine.features.index.decoder_directions",
        "sae_engine.interop.load",
        "sae_engine.interop.weights",
        "sae_engine.kernels.cpu.step",
        "sae_engine.kernels.reference",
        "sae_engine.model.language_model",
        "sae_engine.sae.loss",
        "sae_engine.sae.stepper",
        "sae_engine.playground.read",
        "sae_engine.playground.steer",
        "sae_engine.sae.autoencoders",
        "sae_engine.sae.autograd_step",
        "sae_engine.sae.compiled_step",
        "sae_engine.sae.trainer",
        "sae_engine.sae.triton_step",
    ],
    f"{beartype.__name__}.beartype",
)

_LONGEST = ("chaos", "browser", "sae_engine", "house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folders with the longest files first, or the last worker runs one alone at the end."""
    folder = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(folder).parts[0]
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=place)
