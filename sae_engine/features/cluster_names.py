"""Names of clusters of features: the tokens that their features share and others do not.

Scores are c-TF-IDF (Grootendorst 2022, arXiv 2203.05794, eq. 2). Fed by the top tokens of an index
and the regions of a map; read by `analysis`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

NAME_TOKENS = 3
LEAST_FEATURES = 2
"""Features of a cluster that a token of its name must be a top token of."""


def cluster_names(clusters: Sequence[int], top_tokens: Sequence[Sequence[str]]) -> list[list[str]]:
    """Up to `NAME_TOKENS` tokens for each cluster from 0 on, best first.

    Both arguments are by feature; features of cluster -1 are left out. Tokens that differ only in
    case or outer spaces count as one, and white space does not count. Punctuation names a cluster
    that shares no word.
    """
    num_clusters = max(clusters, default=-1) + 1
    counts = [Counter[str]() for _ in range(num_clusters)]
    for cluster, tokens in zip(clusters, top_tokens, strict=True):
        if cluster >= 0:
            counts[cluster].update({folded for token in tokens if (folded := _folded(token))})
    overall = sum(counts, Counter[str]())
    mean_tokens = overall.total() / max(num_clusters, 1)

    def name(count: Counter[str]) -> list[str]:
        scores = {
            token: number * math.log(1 + mean_tokens / overall[token])
            for token, number in count.items()
            if number >= LEAST_FEATURES
        }
        words = [token for token in scores if any(map(str.isalnum, token))]
        return sorted(words or scores, key=lambda token: (-scores[token], token))[:NAME_TOKENS]

    return [name(count) for count in counts]


def _folded(token: str) -> str:
    return token.strip(" ▁\n\t\r").casefold()
