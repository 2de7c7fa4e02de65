"""One door to all formats of features: a new folder, which appears whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from sae_engine.errors import DiskFullError, UserError
from sae_engine.features.export.html import export_html
from sae_engine.features.export.neuronpedia import export_jsonl, export_neuronpedia
from sae_engine.features.export.parquet import export_parquet
from sae_engine.features.export.source import ExportSource
from sae_engine.files import published_folder

FeatureFormat = Literal["html", "jsonl", "neuronpedia", "parquet"]

BYTES_PER_FEATURE: dict[FeatureFormat, int] = {
    "html": 16_000,
    "jsonl": 60_000,
    "neuronpedia": 16_000,
    "parquet": 16_000,
}
"""With 20 contexts and 25 more from intervals; rounded up."""
BYTES_PER_PAIR: dict[FeatureFormat, int] = {
    "html": 16,
    "jsonl": 0,
    "neuronpedia": 0,
    "parquet": 40,
}
"""Per pair of a token and a feature that fires on it; rounded up."""


def export_features(
    source: ExportSource, format: FeatureFormat, target: Path, *, style: str
) -> None:
    """Write the features into the new folder `target`; `style` is the style sheet for `html`.

    Raises `UserError` if `target` exists, or the disk has too little room.
    """
    if target.exists():
        raise UserError(f"'{target}' exists already; name a new folder.")
    check_room(target, expected_bytes(source, format))
    with published_folder(target) as folder:
        match format:
            case "html":
                export_html(source, folder, style=style)
            case "jsonl":
                export_jsonl(source, folder)
            case "neuronpedia":
                export_neuronpedia(source, folder)
            case "parquet":
                export_parquet(source, folder)


def expected_bytes(source: ExportSource, format: FeatureFormat) -> int:
    """How much the export may take at most, roughly."""
    pairs = len(source.index.arrays.pair_latents)
    return len(source.chosen) * BYTES_PER_FEATURE[format] + pairs * BYTES_PER_PAIR[format]


def check_room(target: Path, wanted_bytes: int) -> None:
    """Raise `DiskFullError` if the disk that `target` lies on has less room than wanted."""
    existing = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted_bytes:
        raise DiskFullError(
            f"The export may take {wanted_bytes / 1e9:.1f} GB, and the disk of '{existing}' has "
            f"{free / 1e9:.1f} GB left; make room, or export to another disk."
        )
