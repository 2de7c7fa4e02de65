"""The history of a feature over hand-made snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_engine.features.index.history import feature_history
from sae_engine.features.index.reader import NoSuchFeatureError
from tests.sae_engine.features.index_reference import built, case_of_rows

LATENTS = 3


@pytest.mark.parametrize(
    ("fires", "born", "died"),
    [
        ([True, True, True], None, None),
        ([False, True, True], 20, None),
        ([True, False, False], None, 20),
        ([False, True, False], 20, 30),
        ([True, False, True], None, None),
        ([False, False, False], None, None),
    ],
)
def test_birth_and_death_are_the_snapshots_at_which_firing_starts_and_stops(
    tmp_path: Path, fires: list[bool], born: int | None, died: int | None
):
    snapshots = []
    for step, here in zip((10, 20, 30), fires, strict=True):
        case = case_of_rows([[5, 6]], lambda n, here=here: {1 if here else 2: 1.0}, d_sae=LATENTS)
        rows = torch.eye(LATENTS)

        def write_sae(path: Path, rows: torch.Tensor = rows) -> None:
            save_file({"W_dec": rows}, path)

        snapshots.append(built(tmp_path, case, step=step, write_sae=write_sae))
    history = feature_history(snapshots, 1)
    assert (history.born_step, history.died_step) == (born, died)
    assert [m.density.fired for m in history.moments] == [2 if here else 0 for here in fires]
    assert [m.decoder_cosine for m in history.moments] == pytest.approx([1, 1, 1])
    with pytest.raises(NoSuchFeatureError):
        feature_history(snapshots, LATENTS)


@pytest.mark.parametrize(
    ("at", "born", "died"), [(1, None, None), (4, None, None), (None, None, 30)]
)
def test_only_tokens_that_all_snapshots_cover_are_compared(
    tmp_path: Path, at: int | None, born: int | None, died: int | None
):
    """The final index covers six tokens, the others two; the latent fires there on one, or not."""
    before = 1 if at != 4 else None
    snapshots = []
    for step, size, place in ((10, 2, before), (20, 2, before), (30, 6, at)):
        case = case_of_rows(
            [[5] * size], lambda n, place=place: {1 if n == place else 2: 1.0}, d_sae=LATENTS
        )

        def write_sae(path: Path) -> None:
            save_file({"W_dec": torch.eye(LATENTS)}, path)

        snapshots.append(built(tmp_path, case, step=step, write_sae=write_sae))
    history = feature_history(snapshots, 1)
    assert (history.born_step, history.died_step) == (born, died)
    assert history.moments[-1].density.fired == (at is not None)
