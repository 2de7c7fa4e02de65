"""Texts to train on, over REST: uploaded files, and the beginning of a text."""

from __future__ import annotations

from sae_engine.schema.config import Division
from sae_engine.schema.shape import Shape


class UploadedText(Shape):
    """A file in the data folder's `texts`."""

    path: str
    """For `data.dataset`, relative to the data folder."""
    bytes: int
    text_column: str | None
    """The column that seems to hold the text; null for plain text, and in lists."""


class TextPreview(Shape):
    """How a dataset would be read."""

    dataset: str
    columns: list[str]
    """Of its first file; empty for plain text, and for a dataset of the hub."""
    text_column: str | None
    """The column that is read; null for plain text."""
    division: Division | None
    """What a document is in plain text; null for rows, or if it differs between files."""
    documents: list[str]
    """The beginnings of the first documents; empty for a dataset of the hub."""
    notices: list[str]
    """What should be known about the text, in sentences."""
