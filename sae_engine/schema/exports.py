"""Export formats. The REST API, the command line and the download menu all read this table.

To add a format of features, add it here and write its module in `sae_engine.features.export`. A
format of the SAE itself has no writer; `sae_engine.interop.export` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from sae_engine.schema.shape import Shape

ExportFormat = Literal["html", "parquet", "jsonl", "neuronpedia", "saelens"]


class ExportProgress(Shape):
    """How far an export is."""

    state: Literal["running", "done", "failed"]
    phase: str
    """In words."""
    fraction: float | None = None
    """Share that is written; null while it is unknown."""
    file: str | None = None
    """Name of the file, once it is being sent."""
    detail: str | None = None
    """Why it failed."""


class FormatInfo(NamedTuple):
    title: str
    summary: str
    """What the export holds, without a final period."""
    writer: str | None
    """Where its `FeatureWriter` is, as `module:name`; None for a format of the SAE itself, which
    has no snapshots.
    """


EXPORT_FORMATS: Mapping[ExportFormat, FormatInfo] = {
    "html": FormatInfo(
        "Static pages",
        "feature list, feature pages and token lookup in a folder that needs no server",
        "sae_engine.features.export.html:WRITER",
    ),
    "parquet": FormatInfo(
        "Parquet",
        "tables of features, contexts and token statistics",
        "sae_engine.features.export.parquet:WRITER",
    ),
    "jsonl": FormatInfo(
        "JSON lines",
        "one feature per line, with Neuronpedia's field names",
        "sae_engine.features.export.neuronpedia:JSONL_WRITER",
    ),
    "neuronpedia": FormatInfo(
        "Neuronpedia",
        "a folder that Neuronpedia can import",
        "sae_engine.features.export.neuronpedia:NEURONPEDIA_WRITER",
    ),
    "saelens": FormatInfo("SAE", "the weights, in SAELens's format", None),
}

MAX_NAME = 80


def file_name(run_name: str, step: int, ending: str) -> str:
    """Name of a downloaded file, in ASCII and safe on any system: run, step and what it is.

    `ending` is such as `parquet.zip` or `curves.csv`.
    """
    safe = re.sub(r"[^A-Za-z0-9.=]+", "-", run_name)[:MAX_NAME].strip("-.")
    return f"{safe or 'run'}-step{step}-{ending}"
