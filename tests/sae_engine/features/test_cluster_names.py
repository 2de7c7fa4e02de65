"""Clusters are named by what their features share, scored as c-TF-IDF."""

from __future__ import annotations

import math

import pytest

from sae_engine.features.cluster_names import cluster_names


def test_a_token_that_all_clusters_share_names_none_before_their_own() -> None:
    clusters = [0, 0, 0, 1, 1, 1]
    tokens = [["the", "cat"], ["the", "cat"], ["the"], ["the", "dog"], ["the", "dog"], ["the"]]
    scores = {"the": 3 * math.log(1 + 5 / 6), "cat": 2 * math.log(1 + 5 / 2)}
    assert scores["cat"] > scores["the"]
    assert cluster_names(clusters, tokens) == [["cat", "the"], ["dog", "the"]]


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ([["Cat"], [" cat"]], ["cat"]),
        ([["▁cat", "CAT"], ["dog"]], []),  # one feature's, though twice
        ([["\n", "  "], ["\n", "  "]], []),
        ([["b", "a"], ["b", "a"]], ["a", "b"]),
        ([["(", "x1"], ["(", "x1"]], ["x1"]),
        ([["(", "."], ["(", "."]], ["(", "."]),
        ([list("abcde"), list("abcde")], ["a", "b", "c"]),
    ],
)
def test_a_name_is_what_two_features_share_whatever_its_case_and_spaces(
    tokens: list[list[str]], wanted: list[str]
) -> None:
    assert cluster_names([0, 0], tokens) == [wanted]


def test_features_outside_all_clusters_do_not_count() -> None:
    assert cluster_names([-1, -1], [["cat"], ["cat"]]) == []
    assert cluster_names([], []) == []
    assert cluster_names([1, 1, -1], [["a"], ["a"], ["a"]]) == [[], ["a"]]
