"""Runs report how much of their held-out text they have also trained on, also when they resume."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sae_engine.activations import stream
from sae_engine.files import RunFolder
from sae_engine.schema.records import AnyRecord, MetricsRecord, StopRequest
from sae_engine.training.loop import train
from tests.sae_engine.training.test_loop import collected, config_of, losses, stopping_at

WORDS = [f"word{number}" for number in range(4000)]


def corpus(path: Path, *, repeats: int) -> Path:
    """Documents of random words; each of them `repeats` times, with another last word."""
    chosen = random.Random(0)
    texts = [" ".join(chosen.choices(WORDS, k=12)) for _ in range(400 // repeats)]
    documents = [f"{text} {chosen.choice(WORDS)}" for text in texts for _ in range(repeats)]
    chosen.shuffle(documents)
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    return path


def overlaps(records: list[AnyRecord]) -> list[float]:
    values = [r.values for r in records if isinstance(r, MetricsRecord)]
    return [each["heldout_overlap"] for each in values if "heldout_overlap" in each]


def test_a_run_reports_the_overlap_and_a_resumed_one_the_same(
    model_folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream, "TOKENS_PER_BLOCK", 512)
    config = config_of(
        model_folders["gemma2"],
        data={"dataset": str(corpus(tmp_path / "text.jsonl", repeats=4)), "heldout_tokens": 1000},
        train={
            "total_tokens": 256 * 12,
            "batch_size_tokens": 256,
            "eval_every": 3,
            "snapshot_every": None,
        },
    )
    whole = collected(train(config, RunFolder(tmp_path / "whole")))
    assert overlaps(whole) == sorted(overlaps(whole))
    assert 0 < overlaps(whole)[0] < overlaps(whole)[-1] < 1
    folder = RunFolder(tmp_path / "parts")
    first: list[AnyRecord] = []
    stop = stopping_at(5, StopRequest.STOP, first)
    collected(train(config, folder, should_stop=stop), first)
    second = collected(train(config, folder, resume=True))
    assert overlaps(first)[:1] + overlaps(second)[-3:] == overlaps(whole)[:1] + overlaps(whole)[-3:]
    assert losses(second)[12] == losses(whole)[12]
