"""A small index with labels to export."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch

from sae_engine.features.export.source import ExportSource
from sae_engine.presets import resolve_config
from sae_engine.schema.labels import DetectionScore, FeatureLabel, LabelOrigin
from tests.sae_engine.features.index_reference import (
    D_IN,
    Case,
    built,
    byte_level_tokenizer,
    random_case,
)

D_SAE = 30
BY_PERSON = LabelOrigin(
    author="person", model=None, prompt_version=None, created_at=None, score=None
)
BY_MODEL = LabelOrigin(
    author="model",
    model="some-model",
    prompt_version="1",
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    score=DetectionScore(
        precision=0.75, recall=0.5, balanced_accuracy=0.7, activating=10, silent=9
    ),
)


def label(feature: int, text: str, origin: LabelOrigin, notes: str = "") -> FeatureLabel:
    return FeatureLabel(feature=feature, label=text, notes=notes, starred=True, origin=origin)


def source(
    folder: Path, *labels: FeatureLabel, include_dead: bool = False, name: str = "a run"
) -> tuple[ExportSource, Case]:
    """An export source with a random final index, and the case that the index was built from."""
    case = random_case(5, d_sae=D_SAE)
    vocab_size = byte_level_tokenizer().get_vocab_size()
    unembed = torch.randn(vocab_size, D_IN, generator=torch.Generator().manual_seed(1))
    made = ExportSource(
        index=built(folder / "run", case, final=True, unembed=unembed),
        run_id="abc123",
        run_name=name,
        config=resolve_config("quick-test", {"model": {"layer": 3}}),
        labels={written.feature: written for written in labels},
        include_dead=include_dead,
    )
    return made, case
