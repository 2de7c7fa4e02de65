"""A column of a Parquet or Arrow file, row by row, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_engine.text.decoding import unusable
from sae_engine.text.rows import Row, no_column

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROWS = 32
BATCH_BYTES = 2**25
"""Rows are decoded in batches of at most this many and about this size."""
BUFFER_BYTES = 2**20
"""A column is read from disk in pieces of this size instead of as a whole."""


def parquet_rows(path: Path, column: str) -> Iterator[Row]:
    import pyarrow.parquet as parquet

    with _damage_reported(path, "Parquet"):
        file = parquet.ParquetFile(path, buffer_size=BUFFER_BYTES)
        names = file.schema_arrow.names
    if column not in names:
        raise no_column(column, f"'{path}'", names)
    batches = file.iter_batches(_rows_per_batch(file, column), columns=[column])
    yield from _rows(batches, 0, path, "Parquet")


def arrow_rows(path: Path, column: str) -> Iterator[Row]:
    import pyarrow as pa

    with _damage_reported(path, "Arrow"), pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_stream(source)
            batches = iter(file)
        if column not in file.schema.names:
            raise no_column(column, f"'{path}'", file.schema.names)
        yield from _rows(batches, file.schema.names.index(column), path, "Arrow")


def column_names(path: Path, suffix: str) -> list[str]:
    """The columns of a `.parquet` or `.arrow` file."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if suffix == ".parquet":
        with _damage_reported(path, "Parquet"):
            return parquet.read_schema(path).names
    with _damage_reported(path, "Arrow"), pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).schema.names
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).schema.names


def texts_of(array: pa.Array) -> list[Any]:
    """The values of an array; bytes that are not UTF-8 become U+FFFD, and what Python cannot hold,
    such as a date of the year 10,000, stays an Arrow scalar.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    try:
        values = array.to_pylist()
    except (UnicodeDecodeError, OverflowError, pa.ArrowInvalid):
        if not _is_string(array.type):
            return [value if value.is_valid else None for value in array]
        is_large = pa.types.is_large_string(array.type)
        values = array.cast(pa.large_binary() if is_large else pa.binary()).to_pylist()
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]


def _is_string(kind: pa.DataType) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _rows(batches: Iterator[pa.RecordBatch], place: int, path: Path, kind: str) -> Iterator[Row]:
    number = 0
    while True:
        with _damage_reported(path, kind, number + 1):
            batch = next(batches, None)
        if batch is None:
            return
        array = batch.column(place)
        for first in range(0, len(array), MAX_ROWS):
            for value in texts_of(array.slice(first, MAX_ROWS)):
                number += 1
                yield Row(number, value)


def _rows_per_batch(file: Any, column: str) -> int:
    """As many rows as fit in `BATCH_BYTES`, going by the file's metadata."""
    largest = 1.0
    for group in map(file.metadata.row_group, range(file.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema.split(".")[0] == column and group.num_rows:
                largest = max(largest, chunk.total_uncompressed_size / group.num_rows)
                if chunk.has_dictionary_page:
                    largest = max(largest, _dictionary_bytes(chunk))
    return max(1, min(MAX_ROWS, int(BATCH_BYTES / largest)))


def _dictionary_bytes(chunk: Any) -> float:
    """About the size of a chunk's dictionary, any entry of which every row may repeat."""
    ratio = chunk.total_uncompressed_size / max(1, chunk.total_compressed_size)
    return (chunk.data_page_offset - chunk.dictionary_page_offset) * ratio


@contextmanager
def _damage_reported(path: Path, kind: str, row: int | None = None) -> Iterator[None]:
    """Raises `ConfigError` for a file that pyarrow cannot read."""
    from pyarrow.lib import ArrowException

    try:
        yield
    except PermissionError:
        raise unusable(f"'{path}' may not be read by this user; change its permissions.") from None
    except (ArrowException, OSError) as error:
        where = "" if row is None else f" from row {row:,} on"
        raise unusable(
            f"'{path}' cannot be read as {kind}{where}: it is damaged or cut off, or its name says "
            "what it is not; copy it again or leave it out."
        ) from error
