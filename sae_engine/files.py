"""The names of a run's files, spelled once, and the one way to publish them.

Everything appears by write-to-temporary, fsync, rename: a reader never sees half a file.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class RunFolder:
    """A run's folder on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def sae(self) -> Path:
        """The last SAE, in the published orientation."""
        return self.path / "sae.safetensors"

    @property
    def sae_config(self) -> Path:
        return self.path / "cfg.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def checkpoint(self) -> Path:
        """The newest state from which the run can be resumed."""
        return self.checkpoints / "last.safetensors"

    @property
    def best(self) -> RunFolder:
        """Where the SAE with the lowest held-out FVU so far is kept, under the same names."""
        return RunFolder(self.checkpoints / "best")

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def index_corpus(self) -> Path:
        """Activations of the index corpus, kept while the run works and removed when it ends."""
        return self.path / "index_corpus"

    @property
    def features(self) -> Path:
        return self.path / "features"

    def feature_index(self, step: int) -> Path:
        return self.features / str(step)

    def snapshots(self) -> list[int]:
        """Steps of the published feature indexes, ascending."""
        if not self.features.is_dir():
            return []
        return sorted(int(p.name) for p in self.features.iterdir() if p.name.isdecimal())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def published_file(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; what was written there appears at `path` in one
    rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def published_folder(path: Path) -> Generator[Path]:
    """Yield a temporary folder beside `path`; it appears whole, in one rename, replacing an
    older one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        _sync(temporary)
        if path.exists():
            old = temporary.with_suffix(".old")
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
