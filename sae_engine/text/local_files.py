"""Text from local files: plain text, or rows of JSON lines, CSV, Parquet or Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sae_engine.errors import ConfigError
from sae_engine.files import user_path
from sae_engine.schema.config import DataConfig, Division
from sae_engine.text.columns import READERS
from sae_engine.text.contents import contents_hash
from sae_engine.text.decoding import readable, unusable
from sae_engine.text.documents import Document, Split, split_by_hash
from sae_engine.text.notices import TextNotices
from sae_engine.text.paths import DatasetFiles, data_suffix, dataset_files
from sae_engine.text.plain_text import TextFile, open_text_file
from sae_engine.text.probe import require_harmless
from sae_engine.text.rows import column_of, usable_texts
from sae_engine.text.tables import csv_rows, json_rows

if TYPE_CHECKING:
    from sae_engine.text.chat import ChatTemplate

CHECKED_FILES = 1_000
CHECKED_DOCUMENTS = 100
"""How many files, and documents of each, are read before a run starts, to find mistakes."""

_TABLES = {".jsonl": json_rows, ".ndjson": json_rows, ".csv": csv_rows, ".tsv": csv_rows}


class LocalFiles:
    """A file, or a folder's files in order of their names."""

    is_unbounded = False

    def __init__(
        self, config: DataConfig, notices: TextNotices, chat: ChatTemplate | None = None
    ) -> None:
        self._config = config
        self._notices = notices
        self._chat = chat

    def require(self) -> None:
        """Makes no request to the hub."""

    def division(self) -> Division | None:
        files = self._files()
        found: set[Division | None] = {
            self._division(path, files) for path in files.paths[:CHECKED_FILES]
        }
        return found.pop() if len(found) == 1 else None

    def _division(self, path: Path, files: DatasetFiles) -> Division | None:
        return self._open(path, files).division if _is_plain(path, files) else None

    def documents(self, split: Split, start: int) -> Iterator[Document]:
        files = self._files()
        texts = (text for path in files.paths for text in self._texts(path, files))
        numbered = (Document(number, text) for number, text in enumerate(texts))
        return split_by_hash(numbered, split)

    def contents(self) -> str:
        root, paths = user_path(self._config.dataset), self._files().paths
        with readable(root):
            return contents_hash({path.relative_to(root).as_posix(): path for path in paths})

    def check(self) -> None:
        """Read the beginning of every file, of the first `CHECKED_FILES`."""
        files = self._files()
        checked = files.paths[:CHECKED_FILES]
        with_text = [path for path in checked if self._holds_text(path, files)]
        if not with_text:
            one = len(checked) == 1
            what = f"'{checked[0]}' holds" if one else f"The files of '{self._config.dataset}' hold"
            raise unusable(f"{what} no text.")

    def _files(self) -> DatasetFiles:
        files = dataset_files(self._config)
        require_harmless(files.paths[:CHECKED_FILES])
        if files.num_left_out:
            of = f" of split '{files.of_split}'" if files.of_split else " with text"
            self._notices.note(
                "left out",
                self._config.dataset,
                f"Read from '{self._config.dataset}': files{of}, {len(files.paths):,} of "
                f"{len(files.paths) + files.num_left_out:,}.",
            )
        return files

    def _holds_text(self, path: Path, files: DatasetFiles) -> bool:
        texts = islice(self._texts(path, files), CHECKED_DOCUMENTS)
        return any(text.strip() for text in texts)

    def _texts(self, path: Path, files: DatasetFiles) -> Iterator[str]:
        """A file's documents, "" for rows left out; raises `ConfigError` if it cannot be read."""
        suffix, column = data_suffix(path) or "", column_of(self._config)
        if column.holds_messages and _is_plain(path, files):
            raise ConfigError.of(
                column.setting,
                f"'{path}' is plain text and has no columns; conversations are read from "
                ".jsonl, .csv, .parquet and .arrow files.",
            )
        if _is_plain(path, files):
            return self._open(path, files).documents()
        if suffix in _TABLES:
            rows = _TABLES[suffix](path, column, self._notices)
        else:
            rows = READERS[suffix](path, column)
        unit = "line" if suffix in (".jsonl", ".ndjson") else "row"
        return usable_texts(rows, self._config, str(path), unit, self._notices, chat=self._chat)

    def _open(self, path: Path, files: DatasetFiles) -> TextFile:
        """A file of plain text."""
        division = "file" if files.are_whole_documents else self._config.documents
        return open_text_file(path, division, self._notices)


def _is_plain(path: Path, files: DatasetFiles) -> bool:
    """Whether it is plain text rather than rows."""
    suffix = data_suffix(path)
    return files.are_whole_documents or (suffix not in _TABLES and suffix not in READERS)
