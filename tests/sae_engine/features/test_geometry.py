"""Matches and maps of decoder rows: against brute force, for hand-set rows, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.manifold import trustworthiness
from torch.utils._python_dispatch import TorchDispatchMode

from sae_engine.errors import UserError
from sae_engine.features.geometry.files import Layout, Matches, width_of
from sae_engine.features.geometry.layout import EXTENT, MOST_REGIONS, lay_out, map_of, regions_of
from sae_engine.features.geometry.matches import match_decoders
from tests.sae_engine.features.index_reference import build, random_case


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saes")


def published(path: Path, rows: torch.Tensor | list[list[float]]) -> Path:
    """An SAE file with a decoder."""
    save_file({"W_dec": torch.as_tensor(rows, dtype=torch.float32)}, path)
    return path


def brute_force_cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray[Any, Any]:
    def unit(rows: torch.Tensor) -> np.ndarray[Any, Any]:
        values = rows.double().numpy()
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)

    return unit(a) @ unit(b).T


@given(
    d_in=st.integers(1, 6),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    chunk_numbers=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_matches_agree_with_brute_force_for_any_chunk_size(
    folder: Path, d_in: int, sizes: tuple[int, int], chunk_numbers: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, d_in, generator=generator) for n in sizes)
    a[0] = 0  # a zero row has no direction
    paths = published(folder / "a.safetensors", a), published(folder / "b.safetensors", b)
    found = match_decoders(*paths, chunk_numbers=chunk_numbers)
    cosines = brute_force_cosines(a, b)
    np.testing.assert_allclose(found.cosines_in_b, cosines.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(found.cosines_in_a, cosines.max(axis=0), atol=1e-5)
    at = np.arange(len(a)), np.arange(len(b))
    np.testing.assert_allclose(cosines[at[0], found.best_in_b], found.cosines_in_b, atol=1e-5)
    np.testing.assert_allclose(cosines[found.best_in_a, at[1]], found.cosines_in_a, atol=1e-5)


def test_hand_set_rows_match_their_copies_and_ties_go_to_the_first(tmp_path: Path) -> None:
    a = published(tmp_path / "a", [[2, 0, 0], [0, 1, 0], [0, 0, 3]])
    b = published(tmp_path / "b", [[0, 5, 0], [1, 0, 0], [7, 0, 0], [0, 0.6, 0.8]])
    found = match_decoders(a, b, chunk_numbers=4)
    assert found.best_in_b.tolist() == [1, 0, 3]
    assert found.cosines_in_b.tolist() == pytest.approx([1, 1, 0.8])
    assert found.best_in_a.tolist() == [1, 0, 0, 2]
    assert found.cosines_in_a.tolist() == pytest.approx([1, 1, 1, 0.8])
    turned = match_decoders(b, a)
    for one, other in zip(turned, found.turned(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_dead_latents_match_nothing(tmp_path: Path) -> None:
    a = published(tmp_path / "a", [[1, 0], [0, 1], [0.6, 0.8]])
    b = published(tmp_path / "b", [[1, 0], [0.8, 0.6], [0, -1]])
    alive = np.array([True, True, False]), np.array([False, True, True])
    found = match_decoders(a, b, alive=alive, chunk_numbers=4)
    assert found.best_in_b[:2].tolist() == [1, 1]
    assert found.cosines_in_b.tolist() == pytest.approx([0.8, 0.6, -1])
    assert found.best_in_a[1:].tolist() == [0, 0]
    assert found.cosines_in_a.tolist() == pytest.approx([-1, 0.8, 0])


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes, except memory-mapped files,
    which are byte tensors at first, and views of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0
        self._mapped: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, torch.Tensor):
                where = tensor.untyped_storage().data_ptr()
                if tensor.dtype == torch.uint8:
                    self._mapped.add(where)
                elif where not in self._mapped:
                    self.numbers = max(self.numbers, tensor.numel())
        return made


def test_no_tensor_is_larger_than_a_chunk(tmp_path: Path) -> None:
    a = published(tmp_path / "a", torch.randn(300, 8))
    b = published(tmp_path / "b", torch.randn(500, 8))
    reports: list[float | None] = []
    with LargestTensor() as largest:
        match_decoders(a, b, chunk_numbers=1024, report=lambda _, share: reports.append(share))
    assert 500 <= largest.numbers <= 1024  # 500 for the results per row
    assert reports == sorted(reports)
    assert reports[-1] == 1


def test_saes_of_different_widths_and_other_files_are_refused(tmp_path: Path) -> None:
    a, b = published(tmp_path / "a", [[1, 0]]), published(tmp_path / "b", [[1, 0, 0]])
    assert (width_of(a), width_of(b)) == (2, 3)
    with pytest.raises(UserError, match="different widths, 2 and 3"):
        match_decoders(a, b)
    (tmp_path / "text").write_text("not an SAE")
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "other")
    for name in ("text", "other", "absent"):
        with pytest.raises(UserError, match=f"{name}' is not an SAE"):
            match_decoders(a, tmp_path / name)


def test_saved_results_are_read_back_and_damage_is_an_error(tmp_path: Path) -> None:
    a = published(tmp_path / "a", torch.randn(5, 3))
    found = match_decoders(a, a)
    found.save(tmp_path)
    for one, other in zip(Matches.load(tmp_path), found, strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "best_in_a.npy").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="pickle"):
        Matches.load(tmp_path)
    (tmp_path / "best_in_a.npy").unlink()
    with pytest.raises(OSError, match="best_in_a"):
        Matches.load(tmp_path)


def clustered(num_clusters: int, each: int, d_in: int) -> torch.Tensor:
    """Unit rows around a few random directions, cluster by cluster."""
    centers = torch.randn(num_clusters, d_in).repeat_interleave(each, dim=0)
    return torch.nn.functional.normalize(centers + 0.4 * torch.randn_like(centers), dim=1)


def test_a_map_preserves_neighborhoods_and_is_deterministic_for_a_seed() -> None:
    rows = clustered(6, 40, 24)
    points = map_of(rows, seed=3)
    assert points.shape == (240, 2)
    assert trustworthiness(rows.numpy(), points, n_neighbors=10, metric="cosine") > 0.9
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 40 == np.arange(240) // 40).mean() > 0.98
    np.testing.assert_array_equal(map_of(rows, seed=3), points)
    assert not np.array_equal(map_of(rows, seed=4), points)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 15])
def test_few_rows_lie_on_their_principal_plane(num_rows: int) -> None:
    rows = clustered(num_rows, 1, 5)
    points = map_of(rows)
    centered = (rows - rows.mean(dim=0)).double()
    expected = (torch.linalg.svd(centered).Vh[:2] @ centered.T).T.numpy()
    expected *= EXTENT / np.abs(expected).max(initial=1e-12)
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-3)


@pytest.mark.parametrize("num_islands", [2, 5])
def test_the_regions_of_a_map_are_its_islands(num_islands: int) -> None:
    island = np.arange(8 * num_islands**2) % num_islands
    spread = np.random.default_rng(1).normal(size=(len(island), 2))
    points = (np.stack([20 * island, island % 2], axis=1) + spread).astype(np.float32)
    regions = regions_of(points)
    pairs = set(zip(island.tolist(), regions.tolist(), strict=True))
    assert len(pairs) == num_islands == len(set(regions.tolist()))
    np.testing.assert_array_equal(regions_of(points), regions)


def test_the_layout_reports_its_epochs() -> None:
    reports: list[tuple[str, float | None]] = []
    rows = torch.nn.functional.normalize(torch.randn(40, 6), dim=1)
    map_of(rows, report=lambda phase, share: reports.append((phase, share)))
    first, *shares = [share for phase, share in reports if phase == "laying out the map"]
    assert first is None  # while UMAP is imported
    known = [share for share in shares if share is not None]
    assert len(known) == len(shares) >= 2  # at most ten a second
    assert known == sorted(known)
    assert (known[0], known[-1]) == (0, 1)


@pytest.mark.parametrize(("num_points", "wanted"), [(0, set()), (15, {-1})])
def test_a_map_of_few_points_has_no_regions(num_points: int, wanted: set[int]) -> None:
    assert set(regions_of(np.ones((num_points, 2), np.float32)).tolist()) == wanted


def test_a_map_has_no_more_regions_than_names_fit() -> None:
    points = np.random.default_rng(2).normal(size=(6000, 2)).astype(np.float32)
    assert regions_of(points).max() + 1 == MOST_REGIONS


def test_dead_features_are_not_on_the_map(tmp_path: Path) -> None:
    case = random_case(1, d_sae=30)
    rows = torch.randn(30, 6)
    folder = build(tmp_path, case, W_dec=rows, write_sae=lambda path: published(path, rows))
    alive = [latent for latent in range(30) if case.fired(latent)]
    assert 0 < len(alive) < 30
    found = lay_out(folder, folder / "sae.safetensors")
    assert found.latents.tolist() == alive
    expected = map_of(torch.nn.functional.normalize(rows[alive], dim=1))
    np.testing.assert_array_equal(found.points, expected)
    found.save(tmp_path)
    np.testing.assert_array_equal(Layout.load(tmp_path).points, found.points)
