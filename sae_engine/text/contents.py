"""What local files are recognized by when a run resumes: their names, their sizes and some of their
bytes.

Read by `local_files` for text and by `activations` for activation files. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

NUM_PIECES = 1024
PIECE_BYTES = 2**14
"""All bytes are read if there are no more than this many pieces of this size."""


class _Piece(NamedTuple):
    path: Path
    offset: int
    length: int


def contents_hash(files: Mapping[str, Path]) -> str:
    """A hash of some files' names, sizes and bytes, not of where and when they were written.

    It reads 16 MiB at most, in pieces spread evenly over the files as if they were one; a change
    between the pieces that keeps every size goes unnoticed. Raises `OSError`.
    """
    sizes = {path: path.stat().st_size for path in files.values()}
    listed = [(name, sizes[path]) for name, path in files.items()]
    digest = hashlib.sha256(json.dumps(listed).encode())
    for path, offset, length in _pieces(sizes):
        with path.open("rb") as file:
            file.seek(offset)
            digest.update(file.read(length))
    return digest.hexdigest()


def _pieces(sizes: Mapping[Path, int]) -> Iterator[_Piece]:
    total = sum(sizes.values())
    if total <= NUM_PIECES * PIECE_BYTES:
        yield from (_Piece(path, 0, size) for path, size in sizes.items())
        return
    paths, begins = list(sizes), [0, *accumulate(sizes.values())]
    for number in range(NUM_PIECES):
        first = number * (total - PIECE_BYTES) // (NUM_PIECES - 1)
        place = bisect_right(begins, first) - 1
        yield _Piece(paths[place], first - begins[place], PIECE_BYTES)
