"""Numbered documents, and their split into training and held-out text.

Shared by all text sources; see `sources`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

Split = Literal["train", "heldout"]

HELDOUT_PERCENT = 10


class Document(NamedTuple):
    number: int
    """Position in its source, counted over both splits."""
    text: str


def split_by_hash(documents: Iterable[Document], split: Split) -> Iterator[Document]:
    """The documents of one split. A tenth is held out, chosen by a hash of the text, so equal
    documents are always in the same split.
    """
    return (d for d in documents if _is_heldout(d.text) == (split == "heldout"))


def _is_heldout(text: str) -> bool:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") * 100 < HELDOUT_PERCENT * 2**32
