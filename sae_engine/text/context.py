"""Tokens that are only context: the language model reads them, but they are not trained on,
measured or indexed.

In rows of ids, a context token is the bitwise complement of its id, which is negative. So rows are
packed, shuffled and mixed the same way with and without context, and ids that are not read through
`read_rows` are no valid ids. Marked by `chat`; read by `activations`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class TokenRows(NamedTuple):
    ids: Int[np.ndarray, "*rows ctx"]
    counted: Bool[np.ndarray, "*rows ctx"]
    """False at context tokens."""


def mark_context(
    ids: Int[np.ndarray, " n"], counted: Bool[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    return np.where(counted, ids, ~ids)


def read_rows(rows: Int[np.ndarray, "*rows ctx"]) -> TokenRows:
    counted = rows >= 0
    return TokenRows(np.where(counted, rows, ~rows), counted)
