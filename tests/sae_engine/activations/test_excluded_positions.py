"""BOS, pad and eos are excluded from training, from the input scale and from everything measured or
shown, whatever the documents contain.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_engine.activations import stream as activations
from sae_engine.activations.feed import TextFeed
from sae_engine.activations.stream import ActivationStream
from sae_engine.schema.config import DataConfig, RunConfig
from sae_engine.text.packing import Packing, training_rows

CTX = 16
SPECIAL = (0, 1, 2)  # pad, eos, bos of the embedded tokenizer
WORDS = ["import", " self", "<bos>", "<eos>", "<pad>", "\n", "é", " the", "0x1F", "🙂", " return"]


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "TOKENS_PER_BLOCK", 64 * CTX)
        yield


documents = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map("".join),
    min_size=30,
    max_size=80,
    unique=True,
)


@pytest.fixture(scope="module")
def feed_of(model_folders, tmp_path_factory):
    """Opens a feed on the given documents; the model is loaded once."""
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    tree = {"model": {"name": str(model_folders["gemma2"]), "layer": 1}}
    tree["data"] = {"dataset": str(path), "ctx_len": CTX, "shuffle_tokens": 1}
    path.write_text("")
    feed = TextFeed([RunConfig.model_validate(tree)])

    def write(texts: list[str]) -> TextFeed:
        # a text of its own in both splits, so that neither is ever empty
        texts = [*texts, *(f"{n} import return {n}" for n in range(400))]
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
        return feed

    return write


def split(feed: TextFeed, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values at ordinary and at special positions, from a plain call of the model."""
    values = feed.model.activations(ids)
    special = torch.isin(ids, torch.tensor(SPECIAL))
    return values[~special], values[special]


def assert_ordinary(values: torch.Tensor, ordinary: torch.Tensor, special: torch.Tensor) -> None:
    """Each value is among the ordinary ones and not among the special ones."""

    def nearest(others: torch.Tensor) -> torch.Tensor:
        distances = torch.cdist(values, others, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.amin(1)

    assert nearest(ordinary).max() < 1e-4
    assert nearest(special).min() > 1e-2


@settings(max_examples=15, deadline=None)
@given(documents)
def test_special_positions_are_excluded_everywhere(feed_of, tmp_path_factory, texts: list[str]):
    feed: TextFeed = feed_of(texts)
    data = DataConfig(dataset=feed._data.dataset, ctx_len=CTX)
    packing = Packing(feed.model.tokenizer, CTX, feed.model.bos_id, feed.model.eos_id)
    rows = torch.from_numpy(training_rows(data, packing).take(64))
    ordinary, special = split(feed, rows)
    stream = ActivationStream(feed.open_source, batch_size=32, seed=0)
    assert len(stream.first_window[0]) == len(ordinary) // 2
    assert_ordinary(stream.first_window[0], ordinary, special)  # scale and first bias
    assert_ordinary(next(stream)[0], ordinary, special)  # training batches

    held = feed.open_heldout(200, tmp_path_factory.mktemp("held") / "out")
    assert not np.isin(held.token_ids, SPECIAL).any()  # contexts and token statistics
    kept, excluded = split(feed, torch.from_numpy(held.ids))
    values = held.read(0, 10**6)  # evaluation and index
    assert len(values) == len(held.token_ids) == len(kept)
    assert_ordinary(values, kept, excluded)
    held.close()
