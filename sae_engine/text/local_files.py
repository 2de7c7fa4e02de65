"""Text from local files: paragraphs of a `.txt`, rows of a `.jsonl` or `.parquet`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from sae_engine.errors import ConfigError
from sae_engine.schema.config import DataConfig
from sae_engine.text.documents import Document, Split, no_column, split_by_hash, text_of

SUFFIXES = (".txt", ".jsonl", ".parquet")


class LocalFiles:
    """A file, or a folder's text files in order of their names."""

    is_unbounded = False

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def documents(self, split: Split, start: int) -> Iterator[Document]:
        column = self._config.text_column
        texts = (text for file in dataset_files(self._config) for text in _texts(file, column))
        numbered = (Document(number, text) for number, text in enumerate(texts))
        return split_by_hash(numbered, split)

    def check(self) -> None:
        first = dataset_files(self._config)[0]
        if not any(text.strip() for text in _texts(first, self._config.text_column)):
            raise _unusable(f"'{first}' holds no text.")


def is_local_dataset(config: DataConfig) -> bool:
    """Whether the dataset is a path: it has the suffix of a text file or begins like a path."""
    return config.dataset.endswith(SUFFIXES) or config.dataset.startswith(("/", "./", "../", "~"))


def dataset_files(config: DataConfig) -> list[Path]:
    """The files of a local dataset; raises `ConfigError` when there are none to read."""
    path = Path(config.dataset).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not files:
            raise _unusable(f"The folder '{path}' holds no .txt, .jsonl or .parquet file.")
        return files
    if not path.exists():
        raise _unusable(f"There is no file or folder '{path}'.")
    if path.suffix not in SUFFIXES:
        raise _unusable(
            f"'{path}' is neither .txt, .jsonl nor .parquet; convert it to one of them."
        )
    return [path]


def _texts(path: Path, column: str) -> Iterator[str]:
    """Raises `ConfigError` for a missing column and for a line that is not JSON."""
    if path.suffix == ".txt":
        return _paragraphs(path)
    if path.suffix == ".jsonl":
        return _json_lines(path, column)
    return _parquet_rows(path, column)


def _paragraphs(path: Path) -> Iterator[str]:
    paragraph: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph)
                paragraph = []
    if paragraph:
        yield "".join(paragraph)


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise _unusable(f"Line {number} of '{path}' is not JSON: {error.msg}.") from None
            if not isinstance(row, dict):
                raise _unusable(f"Line {number} of '{path}' is not a JSON object.")
            if column not in row:
                raise no_column(column, f"line {number} of '{path}'", map(str, row))
            yield text_of(row[column], column)


def _parquet_rows(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        file = parquet.ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise _unusable(f"'{path}' cannot be read as Parquet: {error}.") from None
    if column not in file.schema_arrow.names:
        raise no_column(column, f"'{path}'", file.schema_arrow.names)
    for batch in file.iter_batches(batch_size=256, columns=[column]):
        for value in batch.column(0).to_pylist():
            yield text_of(value, column)


def _unusable(message: str) -> ConfigError:
    return ConfigError.of("data.dataset", message)
