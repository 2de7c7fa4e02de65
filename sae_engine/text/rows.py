"""Rows of a dataset, of which some cannot be used.

The readers of `tables`, `columns` and `hub_dataset` yield rows; here they become texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from sae_engine.errors import ConfigError
from sae_engine.schema.config import DataConfig
from sae_engine.text.notices import TextNotices

MAX_BAD_ROWS = 100
"""A dataset that begins with this many rows of which none can be used is refused."""

MAX_NAMES = 30
"""Columns named in an error."""


class BadRow(NamedTuple):
    """Why a row cannot be used."""

    reason: str
    error: ConfigError
    """What to raise if no row beside it can be used."""


class Row(NamedTuple):
    """A value of the text column, or what is wrong with the row."""

    number: int
    """Position in the file, counted from 1."""
    value: object


def usable_texts(
    rows: Iterable[Row],
    config: DataConfig,
    file: str,
    unit: str,
    notices: TextNotices,
    *,
    from_start: bool = True,
) -> Iterator[str]:
    """The text of every row, "" for one that cannot be used, which `notices` counts.

    Raises `ConfigError` if none of a dataset's first rows can be used; `from_start` says whether
    `rows` begin with those.
    """
    column = config.text_column
    source = (file, config.subset, config.split, column)
    first: ConfigError | None = None
    num_bad = num_good = 0
    for row in rows:
        text = row.value if isinstance(row.value, BadRow) else text_of(row.value, column)
        if isinstance(text, str):
            num_good += 1
            yield text
            continue
        num_bad += 1
        first = first or text.error
        notices.skip(source, row.number, f"{unit} {row.number:,} of '{file}'", text.reason)
        if from_start and not num_good and num_bad == MAX_BAD_ROWS:
            break
        yield ""
    if from_start and first is not None and not num_good:
        raise first


def text_of(value: object, column: str) -> str | BadRow:
    """A column's value as text, "" for None; half surrogate pairs become U+FFFD."""
    if value is None:
        return ""
    if not isinstance(value, str):
        what = f"holds {type(value).__name__}, not text"
        error = ConfigError.of("data.text_column", f"Column '{column}' {what}.")
        return BadRow(f"column '{column}' {what}", error)
    return value if value.isascii() else _paired(value)


def no_column(column: str, where: str, columns: Iterable[str]) -> ConfigError:
    first = list(islice(columns, MAX_NAMES + 1))
    names = ", ".join([*first[:MAX_NAMES], *(["..."] if len(first) > MAX_NAMES else [])]) or "none"
    return ConfigError.of(
        "data.text_column", f"There is no column '{column}' in {where}; its columns are: {names}."
    )


def _paired(text: str) -> str:
    """`text` without the surrogates that JSON may hold and UTF-8 may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
