"""The list of features: sorted, filtered, searched, page by page."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_engine.errors import UserError
from sae_engine.features.index.reader import FeatureIndex
from tests.sae_engine.features.index_reference import (
    built,
    case_of_rows,
)
from tests.sae_engine.features.test_index_reader import CASE, ids_of

LABELS = {3: "Zebra", 9: "apple", 20: "Mango", 39: ""}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    return built(tmp_path_factory.mktemp("run"), CASE)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", ["density", "max_activation", "index", "label"])
def test_a_list_is_sorted_with_ties_by_index(index: FeatureIndex, sort, order) -> None:
    sign = -1 if order == "desc" else 1
    key = {
        "density": lambda i: sign * CASE.fired(i),
        "max_activation": lambda i: sign * max((a for _, a in CASE.active(i)), default=0.0),
        "index": lambda i: sign * i,
    }
    page = index.features(sort=sort, order=order, labels=LABELS, limit=100)
    found = [row.index for row in page.items]
    if sort == "label":
        labeled = [9, 20, 3][::sign]
        assert found == labeled + [i for i in range(40) if i not in labeled]
    else:
        assert found == sorted(range(40), key=lambda i: (key[sort](i), i))


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("stars", [set(), {7}, {2, 39, 99}])
def test_a_list_sorted_by_star_keeps_each_half_in_the_order_of_the_index(
    index: FeatureIndex, order, stars
) -> None:
    page = index.features(sort="starred", order=order, stars=stars, limit=100)
    starred = [i for i in range(40) if i in stars]
    others = [i for i in range(40) if i not in stars]
    wanted = starred + others if order == "desc" else others + starred
    assert [row.index for row in page.items] == wanted
    assert [row.index for row in page.items if row.starred] == starred


@pytest.mark.parametrize(
    ("mark", "wanted"),
    [
        ("starred", {3, 4}),
        ("labeled", {3, 9, 20}),
        ("unlabeled", set(range(40)) - {3, 9, 20}),
    ],
)
def test_a_list_is_filtered_by_what_people_wrote(index: FeatureIndex, mark, wanted) -> None:
    page = index.features(mark=mark, labels=LABELS | {77: "gone"}, stars={3, 4, 77}, limit=100)
    assert {row.index for row in page.items} == wanted
    assert index.features(mark=mark, labels=LABELS, stars={3, 4}, q="zebra").total == (3 in wanted)


def test_pages_cover_the_list_once(index: FeatureIndex) -> None:
    whole = index.features(limit=1000)
    assert whole.next_cursor is None
    items, cursor = [], None
    while True:
        page = index.features(limit=7, cursor=cursor)
        assert page.total == 40
        items += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert items == whole.items


def test_a_list_of_exactly_one_page_has_no_next_cursor(index: FeatureIndex) -> None:
    assert index.features(limit=40).next_cursor is None


@pytest.mark.parametrize("cursor", ["x", "%%%", "é", "cnVuczoz", "ZmVhdHVyZXM6LTE="])
def test_an_invalid_cursor_is_an_error(index: FeatureIndex, cursor: str) -> None:
    with pytest.raises(UserError, match="is not a cursor of a feature list"):
        index.features(cursor=cursor)


def test_density_bounds_are_inclusive(index: FeatureIndex) -> None:
    fraction = {i: CASE.fired(i) / 300 for i in range(40)}
    low, high = sorted(fraction.values())[15], sorted(fraction.values())[30]
    page = index.features(min_density=low, max_density=high, limit=100)
    assert {row.index for row in page.items} == {i for i, f in fraction.items() if low <= f <= high}
    assert page.total == len(page.items)


@pytest.mark.parametrize("state", ["alive", "dead", "dense"])
def test_each_feature_is_in_one_state(index: FeatureIndex, state) -> None:
    page = index.features(state=state, limit=100)
    shares = {row.index: row.density.fraction for row in page.items}
    inside = {
        "dead": lambda f: f == 0,
        "dense": lambda f: f > 0.1,
        "alive": lambda f: 0 < f <= 0.1,
    }[state]
    assert set(shares) == {i for i in range(40) if inside(CASE.fired(i) / 300)}
    assert shares
    assert all(row.state == state for row in page.items)


def test_a_latent_on_exactly_a_tenth_of_the_tokens_is_not_dense(tmp_path: Path) -> None:
    ids = list(range(2, 32))
    index = built(tmp_path, case_of_rows([ids], lambda n: {int(n < 3): 1.0}, d_sae=2))
    assert index.feature(1).state == "alive"
    assert index.feature(0).state == "dense"


def test_a_row_has_the_strongest_example_and_the_best_tokens(index: FeatureIndex) -> None:
    for row in index.features(limit=100).items:
        feature = index.feature(row.index, window=8)
        best = next(iter(feature.contexts), None)
        assert row.example == (best and best.model_copy(update={"copies": 1}))
        assert row.top_tokens == [t.text for t in feature.top_tokens[:5]]
        assert row.density == feature.density


def found(index: FeatureIndex, q: str) -> set[int]:
    return {row.index for row in index.features(q=q, labels=LABELS, limit=100).items}


def test_a_search_finds_indices_and_labels_without_case(index: FeatureIndex) -> None:
    assert found(index, "#12") == {12}
    assert 12 in found(index, " 12 ")
    assert found(index, "#40") == found(index, "#99999999999") == set()
    assert 3 in found(index, "zEB")
    assert 9 in found(index, "APPLE ")
    assert found(index, "  ") == set(range(40))


def test_a_search_finds_top_tokens(tmp_path: Path) -> None:
    rows = [ids_of("in cat dog")]
    index = built(tmp_path, case_of_rows(rows, lambda n: {n: 1.0}, d_sae=6))
    assert [row.index for row in index.features(q="CA").items] == [1]
    assert index.features(q="<bos>").total == 0
