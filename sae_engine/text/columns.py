"""A column of a Parquet or Arrow file, row by row, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_engine.text.decoding import unusable
from sae_engine.text.rows import Column, Row, no_column

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROWS = 32
BATCH_BYTES = 2**25
"""Rows are decoded in batches of at most this many and about this size."""
BUFFER_BYTES = 2**20
"""A column is read from disk in pieces of this size instead of as a whole."""


def parquet_rows(path: Path, column: Column) -> Iterator[Row]:
    import pyarrow.parquet as parquet

    with _damage_reported(path, "Parquet"):
        file = parquet.ParquetFile(path, buffer_size=BUFFER_BYTES)
        names = file.schema_arrow.names
    if column.name not in names:
        raise no_column(column, f"'{path}'", names)
    batches = file.iter_batches(_rows_per_batch(file, column.name), columns=[column.name])
    yield from _rows((batch.column(0) for batch in batches), path, "Parquet")


def arrow_rows(path: Path, column: Column) -> Iterator[Row]:
    import pyarrow as pa

    with _damage_reported(path, "Arrow"), pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_stream(source)
            batches = iter(file)
        if column.name not in file.schema.names:
            raise no_column(column, f"'{path}'", file.schema.names)
        place = file.schema.names.index(column.name)
        yield from _rows((_checked(batch.column(place)) for batch in batches), path, "Arrow")


READERS = {".parquet": parquet_rows, ".arrow": arrow_rows}
"""Readers of rows by the end of a file's name."""


def _checked(array: pa.Array) -> pa.Array:
    """The array; raises `ArrowInvalid` for one that would make Arrow read outside its memory, as
    damaged files do. Text that is not UTF-8 passes.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        texts = _checked(array.dictionary)
        return pa.DictionaryArray.from_arrays(array.indices, texts, safe=True)
    array.view(_as_bytes(array.type)).validate(full=True)
    return array


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The same type with binary values for strings."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_string_view(kind):
        return pa.binary_view()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    for is_list, make in (
        (pa.types.is_list, pa.list_),
        (pa.types.is_large_list, pa.large_list),
    ):
        if is_list(kind):
            return make(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return kind


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
            return [_python(value) for value in array]
        is_large = pa.types.is_large_string(array.type)
        values = array.cast(pa.large_binary() if is_large else pa.binary()).to_pylist()
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]


def _python(value: pa.Scalar) -> Any:
    """A nested value in Python's terms, if Python can hold it; None for a missing value."""
    from pyarrow import types

    if value.is_valid and types.is_nested(value.type):
        with suppress(UnicodeDecodeError, OverflowError, ValueError):
            return value.as_py()
    return value if value.is_valid else None


def _is_string(kind: pa.DataType) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _rows(arrays: Iterator[pa.Array], path: Path, kind: str) -> Iterator[Row]:
    number = 0
    while True:
        with _damage_reported(path, kind, number + 1):
            array = next(arrays, None)
        if array is None:
            return
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
        raise unusable(f"This user may not read '{path}'; change its permissions.") from None
    except (ArrowException, OSError) as error:
        where = "" if row is None else f" from row {row:,} on"
        raise unusable(
            f"'{path}' cannot be read as {kind}{where}: it is damaged or cut off, or its name says "
            "what it is not; copy it again or leave it out."
        ) from error
