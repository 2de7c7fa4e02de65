"""Density histogram, map and comparison of features against brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_engine.errors import UserError
from sae_engine.features.analysis import compare_features, density_histogram, feature_map
from sae_engine.features.geometry.files import Layout, Matches
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.analysis import FeatureComparison, MatchSection
from tests.sae_engine.features.index_reference import built, case_of_rows, random_case

D_SAE_A, D_SAE_B = 30, 40


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureIndex, FeatureIndex]:
    return (
        built(tmp_path_factory.mktemp("a"), random_case(1, d_sae=D_SAE_A), step=5),
        built(tmp_path_factory.mktemp("b"), random_case(2, d_sae=D_SAE_B), step=9),
    )


@pytest.fixture(scope="module")
def cosines() -> np.ndarray[Any, Any]:
    """[d_sae of A, d_sae of B]; the first rows of A are nearly equal to rows of B."""
    values = np.random.default_rng(0).uniform(-0.2, 0.8, (D_SAE_A, D_SAE_B)).astype(np.float32)
    values[np.arange(6), np.arange(6) * 3] = np.linspace(0.9, 1.0, 6)
    return values


@pytest.fixture(scope="module")
def matches(cosines: np.ndarray[Any, Any]) -> Matches:
    return Matches(
        cosines.argmax(axis=1).astype(np.uint32),
        cosines.max(axis=1),
        cosines.argmax(axis=0).astype(np.uint32),
        cosines.max(axis=0),
    )


def ask(
    indexes: tuple[FeatureIndex, FeatureIndex], matches: Matches, section: MatchSection, **more: Any
) -> FeatureComparison:
    labels: dict[str, Any] = {"labels_a": {0: "of A"}, "labels_b": {0: "of B"}}
    return compare_features(*indexes, matches, section=section, **(labels | more))


def expected_pairs(
    indexes: tuple[FeatureIndex, FeatureIndex],
    cosines: np.ndarray[Any, Any],
    section: MatchSection,
    threshold: float,
) -> list[tuple[int, int]]:
    """Pairs of a section, best first, by checking every pair."""
    a, b = indexes
    pairs: list[tuple[float, int, int]] = []
    for i in range(D_SAE_A):
        for j in range(D_SAE_B):
            cosine = float(cosines[i, j])
            best_of_a, best_of_b = cosine == cosines[i].max(), cosine == cosines[:, j].max()
            fires_a, fires_b = a.fired[i] > 0, b.fired[j] > 0
            wanted = {
                "mutual": best_of_a and best_of_b and cosine >= threshold and fires_a and fires_b,
                "only_a": best_of_a and cosine < threshold and fires_a,
                "only_b": best_of_b and cosine < threshold and fires_b,
            }
            if wanted[section]:
                pairs.append((cosine, i, j))
    return [(i, j) for _, i, j in sorted(pairs, reverse=True)]


@pytest.mark.parametrize("threshold", [0.5, 0.75, 0.97])
@pytest.mark.parametrize("section", ["mutual", "only_a", "only_b"])
def test_the_pairs_of_a_section_agree_with_brute_force(
    indexes: tuple[FeatureIndex, FeatureIndex],
    cosines: np.ndarray[Any, Any],
    matches: Matches,
    section: MatchSection,
    threshold: float,
) -> None:
    expected = expected_pairs(indexes, cosines, section, threshold)
    found = ask(indexes, matches, section, threshold=threshold, order="desc", limit=500)
    assert [(item.a.index, item.b.index) for item in found.items] == expected
    assert all(item.cosine == cosines[item.a.index, item.b.index] for item in found.items)
    reverse = ask(indexes, matches, section, threshold=threshold, order="asc", limit=500)
    assert reverse.items == found.items[::-1]
    counts = {
        name: len(expected_pairs(indexes, cosines, name, threshold))
        for name in ("mutual", "only_a", "only_b")
    }
    assert counts[section] == found.total == len(found.items)
    assert (found.num_mutual, found.num_only_a, found.num_only_b) == tuple(counts.values())


def test_pairs_are_sorted_best_first_and_unmatched_features_worst_first(
    indexes: tuple[FeatureIndex, FeatureIndex], matches: Matches
) -> None:
    best = [item.cosine for item in ask(indexes, matches, "mutual").items]
    assert best == sorted(best, reverse=True)
    worst = [item.cosine for item in ask(indexes, matches, "only_a", threshold=0.95).items]
    assert worst == sorted(worst)
    assert len(worst) > 5


def test_pages_cover_a_section_once(
    indexes: tuple[FeatureIndex, FeatureIndex], matches: Matches
) -> None:
    whole = ask(indexes, matches, "only_b", threshold=0.99, limit=500).items
    seen: list[int] = []
    cursor: str | None = None
    while True:
        page = ask(indexes, matches, "only_b", threshold=0.99, limit=7, cursor=cursor)
        seen += [item.b.index for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [item.b.index for item in whole]
    assert len(seen) > 14
    with pytest.raises(UserError, match="is not a cursor of a feature list"):
        ask(indexes, matches, "mutual", cursor="nonsense")


def test_the_histograms_count_every_live_feature_once(
    indexes: tuple[FeatureIndex, FeatureIndex], cosines: np.ndarray[Any, Any], matches: Matches
) -> None:
    found = ask(indexes, matches, "mutual")
    for axis, index, counts in ((1, indexes[0], found.counts_a), (0, indexes[1], found.counts_b)):
        best = [v for v, fired in zip(cosines.max(axis=axis), index.fired, strict=True) if fired]
        bins = [min(int(max(float(v), 0) / 0.02 + 1e-9), 49) for v in best]
        assert counts == [bins.count(n) for n in range(50)]
    assert found.num_features == [sum(found.counts_a), sum(found.counts_b)]
    assert found.snapshots == [5, 9]


def test_a_match_has_both_features_as_in_their_lists(
    indexes: tuple[FeatureIndex, FeatureIndex], matches: Matches
) -> None:
    [item] = [i for i in ask(indexes, matches, "mutual").items if i.a.index == 0]
    assert item.mutual
    assert (item.a.label, item.b.label) == ("of A", "of B")
    for index, row, labels in zip(
        indexes, (item.a, item.b), ({0: "of A"}, {0: "of B"}), strict=True
    ):
        page = index.features(q=f"#{row.index}", labels=labels)
        assert page.items == [row]


def test_a_map_has_position_density_and_top_tokens_of_each_live_feature(
    indexes: tuple[FeatureIndex, FeatureIndex],
) -> None:
    index, _ = indexes
    alive = np.flatnonzero(index.fired)
    points = np.random.default_rng(0).normal(size=(len(alive), 2)).astype(np.float32)
    regions = (np.arange(len(alive)) % 2).astype(np.int32)
    layout = Layout(alive.astype(np.uint32), points, regions)
    found = feature_map(index, layout, {3: "three", 4: ""}, {4})
    assert found.index == alive.tolist()
    np.testing.assert_allclose(np.stack([found.x, found.y], axis=1), points, atol=6e-4)
    assert (found.labels, found.starred) == ({3: "three"}, [4])
    for number, region in enumerate(found.regions):
        inside = points[number::2]
        assert region.num_features == len(inside)
        assert (region.x, region.y) == pytest.approx(tuple(inside.mean(axis=0)), abs=1e-3)
    assert found.num_dead == D_SAE_A - len(alive)
    for place in (0, len(alive) - 1):
        row = index.row(int(alive[place]), {})
        assert found.top_tokens[place] == row.top_tokens[:3]
        assert found.density[place] == row.density.fraction


def test_each_density_bin_counts_the_features_that_its_edges_select_in_the_list(
    indexes: tuple[FeatureIndex, FeatureIndex],
) -> None:
    for index in indexes:
        found = density_histogram(index)
        densities = [fired / index.num_tokens for fired in index.fired.tolist() if fired]
        assert found.num_dead + len(densities) == index.d_sae
        assert found.edges[0] <= 1 / index.num_tokens
        assert found.edges[-1] == 1
        for low, high, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
            assert count == sum(low <= d < high or d == high == 1 for d in densities)
            listed = index.features(min_density=low, max_density=high, limit=500)
            assert listed.total == count + sum(d == high < 1 for d in densities)


def test_a_feature_that_always_fires_is_in_the_last_density_bin(tmp_path: Path) -> None:
    case = case_of_rows([[5, 6, 7, 8]], lambda n: {0: 1.0} if n else {0: 1.0, 1: 1.0}, d_sae=3)
    found = density_histogram(built(tmp_path, case))
    assert found.num_dead == 1
    assert (found.counts[-1], sum(found.counts)) == (1, 2)
