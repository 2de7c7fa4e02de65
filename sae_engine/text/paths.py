"""The files that a local dataset consists of.

Read by `local_files`, and by the server, which lets runs read only some folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sae_engine.errors import ConfigError
from sae_engine.files import looks_like_path, user_path
from sae_engine.schema.config import DataConfig
from sae_engine.text.decoding import is_binary, read_sample, unusable

ROWS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
SUFFIXES = (".txt", *ROWS)
"""Of files with documents. All but .parquet and .arrow may be compressed too."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
ALL_SPLITS = "all"

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"data/(?P<split>[^/]+)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_BETWEEN = r"[-._ 0-9]"
_PARTIAL = (".tmp", ".part", ".partial", ".crdownload", ".incomplete", ".swp", ".lock", "~")


class DatasetFiles(NamedTuple):
    """The files to read, in order."""

    paths: list[Path]
    num_left_out: int = 0
    """Visible files of the folder that are not read."""
    of_split: str | None = None
    """The split that the files belong to, where the folder has splits."""
    are_whole_documents: bool = False
    """Whether the folder holds no files with documents, so that every text file is one."""


def is_local_dataset(name: str) -> bool:
    """Whether `data.dataset` is a path: it looks like one, has the suffix of a file with documents,
    or exists.
    """
    return looks_like_path(name) or data_suffix(Path(name)) is not None or Path(name).exists()


def data_suffix(path: Path) -> str | None:
    """The suffix of a file with documents, without that of its compression; None for others."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        suffix = Path(path.stem).suffix.lower()
        return suffix if suffix in SUFFIXES and suffix not in (".parquet", ".arrow") else None
    return suffix if suffix in SUFFIXES else None


def dataset_files(config: DataConfig) -> DatasetFiles:
    """The files of a local dataset; raises `ConfigError` when there are none to read."""
    path = user_path(config.dataset)
    if path.is_dir():
        return _folder_files(path, config)
    if not path.exists():
        raise unusable(f"There is no file or folder '{path}'.")
    if not path.is_file():
        raise unusable(f"'{path}' is neither a file nor a folder.")
    return DatasetFiles([path])


def _folder_files(folder: Path, config: DataConfig) -> DatasetFiles:
    visible = sorted(_visible_files(folder))
    with_documents = [path for path in visible if data_suffix(path)]
    if config.documents == "file" or not with_documents:
        texts = [path for path in visible if not is_binary(read_sample(path, 8000))]
        if not texts:
            raise unusable(f"The folder '{folder}' holds no text: no file of text, rows or code.")
        return DatasetFiles(texts, len(visible) - len(texts), are_whole_documents=True)
    split, chosen = _split_files(folder, with_documents, config.split)
    return DatasetFiles(chosen, len(visible) - len(chosen), split)


def _visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden, private and half-written ones."""
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__", "_temporary"))]
        for name in names:
            path = Path(where, name)
            if not name.startswith(".") and not name.endswith(_PARTIAL) and path.is_file():
                yield path


def _split_files(folder: Path, files: list[Path], wanted: str) -> tuple[str | None, list[Path]]:
    """The files of a split, found as the datasets library finds them: by shards such as
    `data/train-00000-of-00002.parquet`, else by folders or files named after a split. Without any
    of these, every file belongs to `train`.
    """
    names = {path: path.relative_to(folder).as_posix() for path in files}
    splits = _by_shards(names) or _by_keyword(names, folders=True) or _by_keyword(names)
    if wanted == ALL_SPLITS or (not splits and wanted == "train"):
        return None, files
    if wanted not in splits:
        known = ", ".join(sorted(splits)) or "train"
        raise ConfigError.of(
            "data.split",
            f"The folder '{folder}' has no split '{wanted}', going by the names of its files; it "
            f"has: {known}. '{ALL_SPLITS}' reads every file.",
        )
    return wanted, splits[wanted]


def _by_shards(names: dict[Path, str]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for path, name in names.items():
        if match := _SHARD.fullmatch(name):
            splits.setdefault(match["split"], []).append(path)
    return splits


def _by_keyword(names: dict[Path, str], *, folders: bool = False) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for split, keywords in _KEYWORDS.items():
        after = f"(?:$|{_BETWEEN})" if folders else _BETWEEN
        keyword = re.compile(rf"(?:^|{_BETWEEN})(?:{'|'.join(keywords)}){after}")
        for path, name in names.items():
            *parents, last = name.split("/")
            if any(keyword.search(part) for part in (parents if folders else [last])):
                splits.setdefault(split, []).append(path)
    return splits
