"""The beginning of a text as a run would read it, and the columns to choose from.

Fed by the text sources; read by the server before a run is queued. No torch here.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from sae_engine.errors import ConfigError
from sae_engine.schema.config import DataConfig
from sae_engine.schema.texts import TextPreview
from sae_engine.text.columns import READERS, column_names
from sae_engine.text.notices import TextNotices
from sae_engine.text.paths import data_suffix, dataset_files, is_local_dataset
from sae_engine.text.probe import require_harmless
from sae_engine.text.sources import documents, open_text_source
from sae_engine.text.stdlib import EMBEDDED_CORPUS
from sae_engine.text.tables import csv_names, json_names

SHOWN_DOCUMENTS = 3
SHOWN_CHARS = 400
COMPARED_DOCUMENTS = 20
"""Documents whose length decides which column holds the text."""
USUAL_COLUMN = "text"


def preview(config: DataConfig) -> TextPreview:
    """How the one dataset of `config` would be read; raises `ConfigError` if it cannot be.

    Of a dataset of the hub, only the name is checked.
    """
    notices = TextNotices()
    source = open_text_source(config, notices)
    source.check()
    is_local = is_local_dataset(config.dataset)
    is_here = is_local or config.dataset == EMBEDDED_CORPUS
    columns = columns_of(dataset_files(config).paths[0]) if is_local else []
    shown: list[str] = []
    for split in ("train", "heldout") if is_here else ():
        first = islice(documents(config, split, notices=notices), SHOWN_DOCUMENTS - len(shown))
        shown += [document.text[:SHOWN_CHARS] for document in first]
    return TextPreview(
        dataset=config.dataset,
        columns=columns,
        text_column=config.text_column if columns or not is_here else None,
        division=source.division(),
        documents=shown,
        notices=notices.sentences,
    )


def columns_of(path: Path) -> list[str]:
    """The columns of a file with rows, going by its beginning; none for plain text."""
    suffix = data_suffix(path)
    if suffix in READERS:
        require_harmless([path])
        return column_names(path, suffix)
    if suffix in (".csv", ".tsv"):
        return csv_names(path)
    return json_names(path) if suffix in (".jsonl", ".ndjson") else []


def text_column_of(path: Path) -> str | None:
    """The column that seems to hold the text: `text`, else the one with the longest texts; None
    for plain text, or if no column holds text.
    """
    columns = columns_of(path)
    if USUAL_COLUMN in columns:
        return USUAL_COLUMN
    lengths = {column: _mean_length(path, column) for column in columns}
    best = max(columns, key=lengths.__getitem__, default=None)
    return best if best is not None and lengths[best] > 0 else None


def _mean_length(path: Path, column: str) -> float:
    """Mean characters of the first documents; 0 if the column holds no text."""
    config = DataConfig(dataset=str(path), text_column=column)
    try:
        texts = [d.text for d in islice(documents(config, "train"), COMPARED_DOCUMENTS)]
    except ConfigError:
        return 0.0
    return sum(map(len, texts)) / max(1, len(texts))
