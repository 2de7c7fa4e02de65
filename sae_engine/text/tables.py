"""Rows of JSON lines and of comma-separated values, as they come from the file.

Read by `local_files`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from sae_engine.text.decoding import open_text, read_sample, readable, require_encoding, unusable
from sae_engine.text.notices import TextNotices
from sae_engine.text.rows import BadRow, Column, Row, no_column

MAX_ROW_CHARS = 2**26
"""Longer rows of JSON and longer values of CSV are left out, so that memory is bounded."""
DELIMITERS = ",;\t|"


def json_rows(path: Path, column: Column, notices: TextNotices) -> Iterator[Row]:
    with readable(path), _open_rows(path, notices) as text:
        for number, line in enumerate(_whole_lines(text), 1):
            if line is None or line.strip("\ufeff \t\r\n"):
                yield Row(number, _json_value(line, column, f"line {number} of '{path}'"))


def _json_value(line: str | None, column: Column, where: str) -> object:
    """The value of the column; `line` is None if it is too long."""
    if line is None:
        return _bad(where, f"is longer than {MAX_ROW_CHARS // 2**20} million characters")
    try:
        row = _parsed(line.lstrip("\ufeff"))
    except RecursionError:
        return _bad(where, "is nested too deeply")
    except ValueError as error:
        detail = f": {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
        return _bad(where, "is not JSON", detail)
    if not isinstance(row, dict):
        return _bad(where, "is not a JSON object")
    if column.name not in row:
        return BadRow(f"no column '{column.name}'", no_column(column, where, map(str, row)))
    return row[column.name]


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer with more digits than Python converts
        return json.loads(line, parse_int=float)


def csv_rows(path: Path, column: Column, notices: TextNotices) -> Iterator[Row]:
    """Rows of a table whose first row names the columns, separated by any of `DELIMITERS`."""
    csv.field_size_limit(MAX_ROW_CHARS)
    with readable(path), _open_rows(path, notices) as text:
        lines = iter(lambda: text.readline(MAX_ROW_CHARS), "")
        head = next(lines, "")
        if not head:
            return
        delimiter = _delimiter(head, column.name)
        names = _cells(head, delimiter)
        if column.name not in names:
            raise no_column(column, f"'{path}'", names)
        rows = csv.reader(lines, delimiter=delimiter)
        yield from _csv_values(rows, names.index(column.name), str(path))


def csv_names(path: Path) -> list[str]:
    """The columns of a table."""
    with readable(path), _open_rows(path, TextNotices()) as text:
        head = text.readline(MAX_ROW_CHARS)
    return _cells(head, _delimiter(head))


def json_names(path: Path) -> list[str]:
    """The fields of the first row of JSON lines; none if it is not an object."""
    with readable(path), _open_rows(path, TextNotices()) as text:
        first = next((line for line in _whole_lines(text) if line and line.strip()), "")
    try:
        row = _parsed(first.lstrip("\ufeff"))
    except (RecursionError, ValueError):
        return []
    return list(map(str, row)) if isinstance(row, dict) else []


def _delimiter(head: str, column: str = "") -> str:
    return max(DELIMITERS, key=lambda d: (column in _cells(head, d), head.count(d)))


def _csv_values(rows: Iterator[list[str]], place: int, path: str) -> Iterator[Row]:
    number = 0
    while True:
        number += 1
        try:
            row = next(rows, None)
        except csv.Error:
            yield Row(number, _bad(f"row {number} of '{path}'", "is not valid CSV"))
            continue
        if row is None:
            return
        if row:
            yield Row(number, row[place] if place < len(row) else None)


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _open_rows(path: Path, notices: TextNotices) -> TextIO:
    return open_text(path, require_encoding(path, read_sample(path), notices))


def _whole_lines(text: TextIO) -> Iterator[str | None]:
    """Lines; None for one that is too long."""
    while line := text.readline(MAX_ROW_CHARS):
        if len(line) < MAX_ROW_CHARS or line.endswith("\n"):
            yield line
            continue
        while line and not line.endswith("\n"):
            line = text.readline(MAX_ROW_CHARS)
        yield None


def _bad(where: str, reason: str, detail: str = "") -> BadRow:
    sentence = f"{where[0].upper()}{where[1:]} {reason}{detail}."
    return BadRow(f"it {reason}", unusable(sentence))
