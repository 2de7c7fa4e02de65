"""What a run says about its text, and when."""

import json
from pathlib import Path

import pytest

from sae_engine.activations import stream
from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.schema.records import AnyRecord, MetricsRecord, NoticeRecord, PhaseRecord
from sae_engine.text import packing
from sae_engine.training.loop import train
from tests.sae_engine.training.test_loop import config_of

WORDS = "a few words of text that are long enough to fill a row or two"


def config_for(model: Path, dataset: Path, tokens: int = 2048):
    return config_of(
        model,
        data={"dataset": str(dataset), "heldout_tokens": 1000},
        train={"total_tokens": tokens, "snapshot_every": None, "eval_every": 1000},
        index={"tokens": 1000, "snapshot_tokens": 1000},
    )


def test_rows_left_out_are_told_when_training_starts_and_at_the_end(
    model_folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # So that reading is not far ahead.
    monkeypatch.setattr(packing, "PIECES_PER_CALL", 4)
    monkeypatch.setattr(stream, "TOKENS_PER_BLOCK", 512)
    rows = [json.dumps({"text": f"{n} {WORDS * 4}"}) for n in range(400)]
    rows[3] = rows[310] = '{"text": 5}'
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(rows))
    config = config_for(model_folders["gemma2"], path, tokens=40 * 512)
    records: list[AnyRecord] = list(train(config, RunFolder(tmp_path / "run")))
    told = [(n, r.message) for n, r in enumerate(records) if isinstance(r, NoticeRecord)]
    told = [(n, message) for n, message in told if "left out" in message]
    reason = f"left out (column 'text' holds int, not text); the first is line 4 of '{path}'."
    assert [m for _, m in told] == [f"1 row was {reason}", f"2 rows were {reason}"]
    assert records[told[0][0] + 1] == PhaseRecord(phase="training")
    assert told[1][0] == len(records) - 2  # just before the end


@pytest.mark.parametrize("text", ["only one document", WORDS * 50, "\n\n".join([WORDS] * 200)])
def test_a_text_too_short_to_hold_any_out_fails_before_training(
    model_folders, tmp_path: Path, text: str
):
    path = tmp_path / "a.txt"
    path.write_text(text)
    records = train(config_for(model_folders["gemma2"], path), RunFolder(tmp_path / "run"))
    seen: list[AnyRecord] = []
    with pytest.raises(UserError, match=r"none is left to"):
        seen.extend(records)
    assert not any(isinstance(record, MetricsRecord) for record in seen)


def test_held_out_text_shorter_than_requested_is_told_before_training(
    model_folders, tmp_path: Path
):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"{n} {WORDS}" for n in range(300)))
    messages: list[str] = []
    for record in train(config_for(model_folders["gemma2"], path), RunFolder(tmp_path / "run")):
        if isinstance(record, NoticeRecord):
            messages.append(record.message)
        if record == PhaseRecord(phase="training"):
            break
    assert "fewer than the 1,000 requested" in messages[-1]
