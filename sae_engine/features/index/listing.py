"""Which features a list shows, and in which order."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from sae_engine.errors import UserError
from sae_engine.features.index.vocabulary import Vocabulary
from sae_engine.schema.features import DENSE_FRACTION, FeatureSort, FeatureState, SortOrder

NO_TOKEN = -1


def matching_state(
    fired: NDArray[np.int64], num_tokens: int, state: FeatureState
) -> NDArray[np.bool_]:
    """Which latents are in a state; dead ones never fired, dense ones on over `DENSE_FRACTION`."""
    dead, dense = fired == 0, fired > DENSE_FRACTION * num_tokens
    return {"dead": dead, "dense": dense, "alive": ~dead & ~dense}[state]


def matching_text(
    query: str,
    labels: Mapping[int, str],
    top_tokens: NDArray[np.int64],
    vocabulary: Vocabulary,
) -> NDArray[np.bool_]:
    """[d_sae] which features a search finds: in labels and top tokens, case ignored, or by index.

    `#123` is feature 123 only; `123` also searches text. `top_tokens` is [d_sae, n], filled with
    `NO_TOKEN`.
    """
    query = query.strip().casefold()
    d_sae = len(top_tokens)
    found = np.zeros(d_sae, np.bool_)
    number = re.fullmatch(r"(#?)(\d{1,9})", query, re.ASCII)
    if number and int(number[2]) < d_sae:
        found[int(number[2])] = True
    if number and number[1]:
        return found
    # One entry more than there are tokens, for NO_TOKEN.
    is_hit = np.array([query in text for text in vocabulary.casefolded] + [False])
    found |= is_hit[top_tokens].any(axis=1)
    labeled = [i for i, label in labels.items() if i < d_sae and query in label.casefold()]
    found[labeled] = True
    return found


def ordered(
    chosen: NDArray[np.int64],
    sort: FeatureSort,
    order: SortOrder,
    *,
    fired: NDArray[np.int64],
    max_acts: Callable[[], NDArray[np.float32]],
    labels: Mapping[int, str],
) -> NDArray[np.int64]:
    """Sort ascending indices; ties stay ascending, features without a label come last. `max_acts`
    is asked for only if it decides: it is read from all over the disk.
    """
    descending = order == "desc"
    if sort == "index":
        return chosen[::-1] if descending else chosen
    if sort == "label":
        labeled = [i for i in chosen.tolist() if labels.get(i)]
        labeled.sort(key=lambda i: labels[i].casefold(), reverse=descending)
        rest = np.setdiff1d(chosen, labeled, assume_unique=True)
        return np.concatenate([np.array(labeled, np.int64), rest])
    key = (fired if sort == "density" else max_acts())[chosen]
    return chosen[np.argsort(-key if descending else key, kind="stable")]


def cursor_at(offset: int) -> str:
    """An opaque cursor that continues a list at an offset."""
    return base64.urlsafe_b64encode(f"features:{offset}".encode()).decode()


def offset_of(cursor: str) -> int:
    """The offset of a cursor; raises `UserError` for one that no list gave out."""
    try:
        kind, offset = base64.urlsafe_b64decode(cursor.encode()).decode().split(":")
        if kind == "features" and offset.isdecimal():
            return int(offset)
    except (binascii.Error, UnicodeError, ValueError):
        pass
    raise UserError(
        f"The cursor '{cursor[:50]}' is not one that a feature list gave; start without one."
    )
