"""Export formats. The REST API, the command line and the download menu all read this table.

To add a format of features, add it here and write its module in `sae_engine.features.export`. A
format of the SAE itself has no writer; `sae_engine.interop.export` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

ExportFormat = Literal["html", "parquet", "jsonl", "neuronpedia", "saelens"]


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
        "one feature per line, in Neuronpedia's field names",
        "sae_engine.features.export.neuronpedia:JSONL_WRITER",
    ),
    "neuronpedia": FormatInfo(
        "Neuronpedia",
        "a folder that Neuronpedia can import",
        "sae_engine.features.export.neuronpedia:NEURONPEDIA_WRITER",
    ),
    "saelens": FormatInfo("SAE", "the weights, in SAELens's format", None),
}
