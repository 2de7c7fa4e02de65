"""Runs on one pass share what would be the same for each: counting, reading, loading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_engine.files import RunFolder
from sae_engine.model import language_model
from sae_engine.schema.records import EndRecord
from sae_engine.text import packing
from sae_engine.text.documents import Document, Split
from sae_engine.text.sources import documents
from sae_engine.training.loop import train_together
from sae_engine.training.member import Member
from tests.sae_engine.training.test_loop import config_of


def test_two_runs_read_the_text_and_load_the_model_as_often_as_one(
    model_folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []

    def count_calls(name: str) -> None:
        load = getattr(language_model, name)

        def counted(*args):
            calls.append(name)
            return load(*args)

        monkeypatch.setattr(language_model, name, counted)

    def read(config, split: Split, *rest: Any) -> Iterator[Document]:
        calls.append(split)
        return documents(config, split, *rest)

    count_calls("load_whole")
    count_calls("load_head")
    monkeypatch.setattr(packing, "documents", read)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"document {n} holds a few words of text" for n in range(120)))
    config = config_of(
        model_folders["gemma2"],
        data={"dataset": str(text), "heldout_tokens": 1000},
        train={"total_tokens": None, "num_epochs": 1, "ce_every": 10, "snapshot_every": None},
        index={"tokens": 1000, "snapshot_tokens": 1000},
    )

    def calls_of(num_runs: int) -> list[str]:
        calls.clear()
        folders = [RunFolder(tmp_path / f"{number} of {num_runs}") for number in range(num_runs)]
        records = train_together([Member(config, folder) for folder in folders])
        reasons = [record.reason for _, record in records if isinstance(record, EndRecord)]
        assert reasons == ["finished"] * num_runs
        return list(calls)

    alone = calls_of(1)
    # At the end, the index needs the head and then the cross-entropy the whole model.
    assert [call for call in alone if call.startswith("load")][-2:] == ["load_head", "load_whole"]
    assert calls_of(2) == alone
