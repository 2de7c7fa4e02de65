"""Rows of a dataset, of which some cannot be used.

The readers of `tables`, `columns` and `hub_dataset` yield rows; here they become texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from sae_engine.errors import ConfigError
from sae_engine.schema.config import DataConfig
from sae_engine.text.messages import NotMessagesError, messages_of
from sae_engine.text.notices import TextNotices

if TYPE_CHECKING:
    from sae_engine.text.chat import ChatTemplate

MAX_BAD_ROWS = 100
"""A dataset that begins with this many rows of which none can be used is refused."""

MAX_NAMES = 30
"""Columns named in an error."""


class Column(NamedTuple):
    """The column that holds a dataset's documents, texts or conversations."""

    name: str
    setting: str
    """The field of the configuration that names it."""

    @property
    def holds_messages(self) -> bool:
        return self.setting == "data.messages_column"


def column_of(config: DataConfig) -> Column:
    if config.messages_column is not None:
        return Column(config.messages_column, "data.messages_column")
    return Column(config.text_column, "data.text_column")


class BadRow(NamedTuple):
    """Why a row cannot be used."""

    reason: str
    error: ConfigError
    """What to raise if no row beside it can be used."""


class Row(NamedTuple):
    """A value of the column, or what is wrong with the row."""

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
    chat: ChatTemplate | None = None,
    from_start: bool = True,
) -> Iterator[str]:
    """The text of every row, "" for one that cannot be used, which `notices` counts.

    A conversation's text is the JSON of its messages; those that `chat` refuses cannot be used.
    Raises `ConfigError` if none of a dataset's first rows can be used; `from_start` says whether
    `rows` begin with those.
    """
    column = column_of(config)
    source = (file, config.subset, config.split, column.name)
    first: ConfigError | None = None
    num_bad = num_good = 0
    for row in rows:
        text = row.value if isinstance(row.value, BadRow) else text_of(row.value, column, chat)
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


def text_of(value: object, column: Column, chat: ChatTemplate | None = None) -> str | BadRow:
    """A column's value as text, "" for None in a column of text; half surrogate pairs become
    U+FFFD.
    """
    if column.holds_messages:
        return _conversation(value, column, chat)
    if value is None:
        return ""
    if not isinstance(value, str):
        return _bad(column, f"holds {type(value).__name__}, not text")
    return value if value.isascii() else _paired(value)


def _conversation(value: object, column: Column, chat: ChatTemplate | None) -> str | BadRow:
    try:
        messages = messages_of(value)
        text = _paired(json.dumps(messages, ensure_ascii=False, default=str))
        if chat is not None:
            chat.check(text)
    except NotMessagesError as error:
        return _bad(column, str(error))
    return text


def _bad(column: Column, what: str) -> BadRow:
    error = ConfigError.of(column.setting, f"Column '{column.name}' {what}.")
    return BadRow(f"column '{column.name}' {what}", error)


def no_column(column: Column, where: str, columns: Iterable[str]) -> ConfigError:
    first = list(islice(columns, MAX_NAMES + 1))
    names = ", ".join([*first[:MAX_NAMES], *(["..."] if len(first) > MAX_NAMES else [])]) or "none"
    return ConfigError.of(
        column.setting, f"There is no column '{column.name}' in {where}; its columns are: {names}."
    )


def _paired(text: str) -> str:
    """`text` without the surrogates that JSON may hold and UTF-8 may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
