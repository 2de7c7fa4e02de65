"""Filters, order and cursors of lists of features."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_engine.errors import UserError
from sae_engine.features.index.format import IndexArrays
from sae_engine.features.index.vocabulary import Vocabulary
from sae_engine.schema.features import (
    DENSE_FRACTION,
    FeatureMark,
    FeatureSort,
    FeatureState,
    SortOrder,
)

NO_TOKEN = -1
"""Padding of arrays of token ids."""


def top_token_ids(arrays: IndexArrays, num: int) -> NDArray[np.int64]:
    """[d_sae, num] tokens with the highest F1 for each latent, padded with `NO_TOKEN`."""
    starts = arrays.latent_token_starts
    where = starts[:-1, None] + np.arange(num)
    exists = where < starts[1:, None]
    top = np.full(where.shape, NO_TOKEN, np.int64)
    top[exists] = arrays.latent_tokens[where[exists]]
    return top


def is_in_state(fired: Any, num_tokens: int, state: FeatureState) -> Any:
    """Whether latents that fired on `fired` (a number or an array) of `num_tokens` positions are in
    a state: dead ones never fired, dense ones on more than `DENSE_FRACTION`.
    """
    dead, dense = fired == 0, fired > DENSE_FRACTION * num_tokens
    return {"dead": dead, "dense": dense, "alive": ~dead & ~dense}[state]


def matches_text(
    query: str,
    labels: Mapping[int, str],
    top_tokens: NDArray[np.int64],
    vocabulary: Vocabulary,
) -> NDArray[np.bool_]:
    """[d_sae] whether a search finds each feature: by index, or by text in its label or top tokens.

    Case is ignored. `#123` finds only feature 123; `123` also searches text. `top_tokens` is
    [d_sae, n], padded with `NO_TOKEN`.
    """
    query = query.strip().casefold()
    d_sae = len(top_tokens)
    found = np.zeros(d_sae, np.bool_)
    number = re.fullmatch(r"(#?)(\d{1,9})", query, re.ASCII)
    if number and int(number[2]) < d_sae:
        found[int(number[2])] = True
    if number and number[1]:
        return found
    # The additional last entry is for NO_TOKEN.
    is_hit = np.array([query in text for text in vocabulary.casefolded] + [False])
    found |= is_hit[top_tokens].any(axis=1)
    labeled = [i for i, label in labels.items() if i < d_sae and query in label.casefold()]
    found[labeled] = True
    return found


def is_marked(
    d_sae: int, mark: FeatureMark, labels: Mapping[int, str], stars: Collection[int]
) -> NDArray[np.bool_]:
    """[d_sae] whether each feature is starred, or has a label, or has none."""
    marked = stars if mark == "starred" else [i for i, label in labels.items() if label]
    found = np.zeros(d_sae, np.bool_)
    found[[i for i in marked if i < d_sae]] = True
    return ~found if mark == "unlabeled" else found


def ordered(
    chosen: NDArray[np.int64],
    sort: FeatureSort,
    order: SortOrder,
    *,
    arrays: IndexArrays,
    labels: Mapping[int, str],
    stars: Collection[int],
    clarity: Callable[[], NDArray[np.float64]],
) -> NDArray[np.int64]:
    """Sort ascending latents; ties stay ascending, latents without a label come last."""
    descending = order == "desc"
    if sort == "index":
        return chosen[::-1] if descending else chosen
    if sort == "label":
        labeled = [i for i in chosen.tolist() if labels.get(i)]
        labeled.sort(key=lambda i: labels[i].casefold(), reverse=descending)
        rest = np.setdiff1d(chosen, labeled, assume_unique=True)
        return np.concatenate([np.array(labeled, np.int64), rest])
    if sort == "clarity":
        key = clarity()[chosen]
    elif sort == "starred":
        key = np.isin(chosen, list(stars)).astype(np.int64)
    else:
        key = arrays.fired[chosen] if sort == "density" else arrays.max_activations(chosen)
    return chosen[np.argsort(-key if descending else key, kind="stable")]


def cursor_at(offset: int) -> str:
    """An opaque cursor that continues a list at an offset."""
    return base64.urlsafe_b64encode(f"features:{offset}".encode()).decode()


def offset_of(cursor: str) -> int:
    """The offset of a cursor; raises `UserError` for one that no list returned."""
    try:
        kind, offset = base64.urlsafe_b64decode(cursor.encode()).decode().split(":")
        if kind == "features" and offset.isdecimal():
            return int(offset)
    except (binascii.Error, UnicodeError, ValueError):
        pass
    raise UserError(f"'{cursor[:50]}' is not a cursor of a feature list; start without a cursor.")
