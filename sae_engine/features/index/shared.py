"""What several open indexes share, because it is made from equal files, such as a vocabulary.

Read by `reader`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from sae_engine.features.index.manifest import Manifest

_Made = TypeVar("_Made")


class Shared(Generic[_Made]):
    """An LRU cache of objects built from files of an index.

    What is made must not refer to the files, which may be deleted.
    """

    def __init__(self, capacity: int, *files: str) -> None:
        self._capacity = capacity
        self._files = files
        self._made: OrderedDict[tuple[str, ...], _Made] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, folder: Path, manifest: Manifest, make: Callable[[], _Made]) -> _Made:
        """The thing of an index, made if no index with equal files has it.

        The files are verified before, because damage to one index must not reach others.
        """
        files = [name for name in self._files if name in manifest.files]
        key = tuple(manifest.files[name].sha256 for name in files)
        with self._lock:
            made = self._made.pop(key, None)
            if made is None:
                manifest.verify(folder, *files)
                made = make()
            self._made[key] = made
            if len(self._made) > self._capacity:
                self._made.popitem(last=False)
        return made
