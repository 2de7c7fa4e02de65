"""The names of a run's files, and how files are published.

Every file is written under a temporary name, synced and renamed, so readers never see half a file.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sae_engine.errors import ConfigError, DiskFullError
from sae_engine.scratch import held

_NO_ROOM = re.compile(
    r"No space left|Disk quota exceeded|\(os error 28\)|requested and \d+ written"
)
"""Messages of libraries that report a full disk without an error number; the last is numpy's."""


def looks_like_path(name: str) -> bool:
    """Whether a setting that takes a name of the hub or a path is written as a path."""
    return name.startswith(("/", "./", "../", "~"))


def user_path(text: Path | str) -> Path:
    """A path with `~` expanded; that of a user who does not exist stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


class RunFolder:
    """A run's folder on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """What the run was last started with, written by the backend."""
        return self.path / "environment.json"

    @property
    def model(self) -> Path:
        """What tells the language model from later ones of the same name."""
        return self.path / "model.json"

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
    def previous_checkpoint(self) -> Path:
        """The checkpoint before, in case the newest cannot be read."""
        return self.checkpoints / "previous.safetensors"

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run can be resumed; temporary files do not count."""
        return self.checkpoint.exists() or self.previous_checkpoint.exists()

    @property
    def best(self) -> RunFolder:
        """Holds the SAE with the lowest held-out FVU so far, under the same names."""
        return RunFolder(self.checkpoints / "best")

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def wandb_id(self) -> Path:
        """The id of the run at Weights & Biases, under which it goes on when it is resumed."""
        return self.path / "wandb_id.txt"

    @property
    def index_corpus(self) -> Path:
        """Held-out activations, removed when the run ends."""
        return self.path / "index_corpus"

    @property
    def index_codes(self) -> Path:
        """Codes of a feature index that is being built, removed when it is."""
        return self.path / "index_codes"

    @property
    def features(self) -> Path:
        return self.path / "features"

    def feature_index(self, step: int) -> Path:
        return self.features / str(step)

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half-written or would have removed at its end; only for
        the process that works on the run, or when it has ended.
        """
        for folder in (self.index_corpus, self.index_codes):
            shutil.rmtree(folder, ignore_errors=True)
        for path in [*self.path.rglob(".*.tmp"), *self.path.rglob(".*.old")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

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
def room_needed(path: Path) -> Generator[None]:
    """Raise `DiskFullError` instead of a library's error when the disk is full; `path` is what is
    being written.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if _is_disk_full(error):
            raise DiskFullError(
                f"The disk that holds '{path}' is full. What was saved before is kept; free some "
                "space and continue."
            ) from error
        raise


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether the error or one of its causes is that of a full disk."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if _NO_ROOM.search(str(error)) is not None:
            return True
        error = error.__cause__
    return False


@contextmanager
def published_file(path: Path, *, keep: Path | None = None) -> Generator[Path]:
    """Yield a temporary path, whose file replaces `path` in one rename; the old file moves to
    `keep`. Raises `DiskFullError`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with room_needed(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            if keep is not None and path.exists():
                path.replace(keep)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def published_folder(path: Path) -> Generator[Path]:
    """Yield a temporary folder, which then becomes `path` by a rename. Raises `DiskFullError`.

    An older folder at `path` is moved away first, so for an instant there is none.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with room_needed(path):
            temporary.mkdir(parents=True)
            with held(temporary):
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


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises `OSError`, or `ValueError` if the file holds none."""
    try:
        described = json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError(f"'{path}' is nested too deeply") from None
    if not isinstance(described, dict):
        raise ValueError(f"'{path}' holds no JSON object")
    return cast(dict[str, Any], described)


@contextmanager
def usable_paths() -> Generator[None]:
    """Raise `ConfigError` for a path that the system cannot follow: a loop of links, an unknown
    user, a name that is too long, a folder that may not be read.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.ENOTDIR):
            raise
        where = f"'{error.filename}' cannot be read: {error.strerror}; give another path."
        raise ConfigError.of("", where) from None
    except RuntimeError as error:  # pathlib's, before Python 3.13
        if not str(error).startswith(("Symlink loop", "Could not determine home")):
            raise
        raise ConfigError.of("", f"A path cannot be used: {error}; give another.") from None
