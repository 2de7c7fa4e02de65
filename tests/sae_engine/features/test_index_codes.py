"""The codes of an index: encoded in chunks, scaled and stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sae_engine.features.index import codes as codes_module
from sae_engine.features.index.codes import ActivationRangeError, CorpusEncoder
from sae_engine.features.index.format import open_index
from sae_engine.files import RunFolder
from tests.sae_engine.features.index_reference import build, built, case_of_rows, random_case

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.mark.parametrize("k", [3, None])
@pytest.mark.parametrize("size", [1, 5, 7, 8, 30, 100])
def test_codes_do_not_depend_on_the_pieces_that_activations_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, k: int | None
) -> None:
    monkeypatch.setattr(codes_module, "ENCODE_CHUNK_TOKENS", 7)
    seen: list[list[float]] = []

    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(x[:, 0].tolist())
        width = 3 if k else 1 + int(x[0, 0]) % 3
        return x[:, :1].expand(-1, width) + 1, torch.arange(width).expand(len(x), width)

    with CorpusEncoder(tmp_path, encode, d_sae=5, k=k, device=torch.device("cpu")) as encoder:
        for part in torch.arange(31.0)[:, None].split(size):
            encoder.add(part)
        codes = encoder.finish()
    assert seen == [list(range(a, min(a + 7, 31))) for a in range(0, 31, 7)]
    assert (codes.num_tokens, codes.width) == (31, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acts.npy", "indices.npy"]
    acts = np.load(tmp_path / "acts.npy") * codes.act_scale
    widths = [3 if k else 1 + (n - n % 7) % 3 for n in range(31)]
    assert acts.tolist() == [[n + 1.0] * w + [0.0] * (3 - w) for n, w in enumerate(widths)]


@pytest.mark.parametrize("unit", [1e-38, 1e-12, 1.0, 264_458.0, 1e30])
def test_activations_of_any_size_are_stored_to_float16_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: float
) -> None:
    """Also where a later chunk is larger than the first, and where the first is inactive."""
    monkeypatch.setattr(codes_module, "ENCODE_CHUNK_TOKENS", 2)
    sizes = [0.0, 0.0, 1.0, 1.5, 1200.0, 3.0, 0.25, 0.0]
    case = case_of_rows([[5, 6, 7, 5], [5, 6, 7, 8]], lambda n: {3: unit * sizes[n]}, d_sae=4)
    index = built(tmp_path, case)
    assert index.feature(3).density.fired == 5
    assert index.max_activations([3, 0]) == pytest.approx([1200 * unit, 0], rel=5e-4)
    found = {(c.row, c.position): c.activation for c in index.feature(3).contexts}
    expected = {divmod(n, 4): unit * sizes[n] for n in range(8) if sizes[n]}
    assert found == pytest.approx(expected, rel=5e-4)
    assert index.feature(3).histogram.edges[-1] == pytest.approx(1200 * unit, rel=5e-4)
    token = next(t for t in index.feature(3).top_tokens if t.id == 5)
    assert token.max_activation == pytest.approx(1200 * unit, rel=5e-4)
    assert token.mean_activation == pytest.approx((1200 + 1.5) * unit / 2, rel=5e-4)


def test_scaling_changes_no_activation_within_float16(tmp_path: Path) -> None:
    case = random_case(5)
    arrays = open_index(build(tmp_path, case))[1]
    stored = arrays.acts.astype(np.float64) * arrays.act_scale
    assert np.array_equal(stored, case.acts.astype(np.float16).astype(np.float64))


def test_a_weak_activation_beside_a_huge_one_stays_active(tmp_path: Path) -> None:
    case = case_of_rows([[5, 6]], lambda n: {n: 1e30 if n else 1e-20}, d_sae=2)
    assert built(tmp_path, case).feature(0).density.fired == 1


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_activation_that_is_not_finite_is_an_error_that_names_the_latent(
    tmp_path: Path, value: float
) -> None:
    case = case_of_rows([[5, 6]], lambda n: {4: 1.0 if n else value}, d_sae=9)
    with pytest.raises(ActivationRangeError, match=f"Latent 4 has activation {value:g} "):
        build(tmp_path, case)
    assert RunFolder(tmp_path).snapshots() == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_encode_gets_float32_whatever_the_dtype_of_the_corpus(tmp_path: Path, dtype: str) -> None:
    values = torch.tensor([[0.5], [1.5], [-2.0]])
    seen: list[torch.Tensor] = []

    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(x)
        return torch.ones(len(x), 1), torch.zeros(len(x), 1, dtype=torch.int64)

    stored = values.to(getattr(torch, dtype))
    build(tmp_path, random_case(0, num_tokens=3, k=1), activations=stored, encode=encode)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], values)
