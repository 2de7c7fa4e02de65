"""Texts too small for a run are refused, or warned about, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sae_engine.errors import ConfigError
from sae_engine.preflight import check_amount, check_config
from sae_engine.presets import resolve_config
from sae_engine.schema.config import RunConfig
from sae_engine.text.preview import preview


def config_of(path: Path, total_tokens: int = 1000, **data: Any) -> RunConfig:
    data |= {"dataset": str(path)}
    return resolve_config("tiny", {"data": data, "train": {"total_tokens": total_tokens}})


@pytest.mark.parametrize(
    ("content", "has"),
    [
        ("word " * 50_000, "only one document"),
        ("one\n\ntwo\n\nthree\n\n", "3 documents"),
    ],
)
def test_a_text_of_too_few_documents_is_refused(tmp_path: Path, content: str, has: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"has {has}, .* none is left to hold out") as caught:
        check_config(config_of(path, documents="paragraphs"))
    assert caught.value.problems[0].field == "data.dataset"


def test_a_text_whose_only_document_is_held_out_is_refused_and_still_previewed(
    tmp_path: Path,
) -> None:
    for number in range(100):
        path = tmp_path / f"{number}.txt"
        path.write_text(f"the only document is number {number}")
        try:
            check_config(config_of(path))
        except ConfigError as error:
            if "none is left to train on" in str(error):
                break
    else:
        pytest.fail("a tenth of a hundred texts should be held out")
    found = preview(config_of(path).data)
    assert found.documents == [path.read_text()]
    assert found.text_column is None  # plain text, not a dataset of the hub


def test_tokens_that_read_a_small_text_many_times_are_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"document {n:05} here\n\n" for n in range(1000)))  # 21 bytes each
    check_config(config_of(path))
    [sentence] = check_amount(config_of(path, 525_000))
    assert "holds about 5,250 tokens (21,000 bytes)" in sentence
    assert "525,000 training tokens read it about 100 times" in sentence
    assert check_amount(config_of(path, 3 * 5_250)) == []
    assert check_amount(resolve_config("tiny", {})) == []
