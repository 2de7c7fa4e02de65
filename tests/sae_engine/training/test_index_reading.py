"""The final index is encoded while the language model reads: the same files as from activations
that are stored, each row read once, whatever else reads with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sae_engine import sizes
from sae_engine.activations import heldout as activations
from sae_engine.activations.feed import TextFeed
from sae_engine.activations.writer import save_activations
from sae_engine.features.index import codes
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.inference import open_coder
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, EndRecord, PhaseRecord, StopRequest
from sae_engine.training import heldout
from sae_engine.training.indexing import IndexReading, encode_together
from sae_engine.training.loop import train, train_together
from sae_engine.training.member import Member
from tests.sae_engine.sae.test_autoencoders import random_jumprelu, random_sae
from tests.sae_engine.training.test_loop import collected, config_of, stopping_at
from tests.sae_engine.training.test_outliers import with_sink

BUILDING, SORTING = "building the feature index", "sorting the feature index"
CHUNK = 700

pytestmark = pytest.mark.usefixtures("small_blocks", "small_pieces")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little text is stored, and calls of the model and of the SAE end at different tokens."""
    monkeypatch.setattr(sizes, "TOKENS_PER_BLOCK", 512)
    monkeypatch.setattr(heldout, "TOKENS_PER_BLOCK", 512)
    monkeypatch.setattr(activations, "TOKENS_PER_FORWARD", 512)
    monkeypatch.setattr(codes, "ENCODE_CHUNK_TOKENS", CHUNK)


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The rows of held-out text that the language model has read."""
    read: list[tuple[int, ...]] = []
    extract = activations.extract

    def counted(model: Any, ids: torch.Tensor, *rest: Any, **more: Any) -> list[torch.Tensor]:
        read.extend(map(tuple, ids.tolist()))
        return extract(model, ids, *rest, **more)

    monkeypatch.setattr(activations, "extract", counted)
    return read


@pytest.fixture
def storing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[RunConfig, Path], RunFolder]]:
    """Runs a configuration with all of its held-out activations stored."""

    def run(config: RunConfig, path: Path) -> RunFolder:
        with monkeypatch.context() as patch:
            patch.setattr(heldout, "num_stored", sizes.num_heldout)
            collected(train(config, RunFolder(path)))
        return RunFolder(path)

    return run


def config_with_long_index(model: Path, /, **overrides: dict) -> RunConfig:
    settings: dict[str, dict] = {
        "data": {"ctx_len": 32, "heldout_tokens": 1000, "shuffle_tokens": 1200},
        "train": {"total_tokens": 64 * 16, "snapshot_every": 10, "eval_every": 100},
        "index": {"tokens": 3000},
    }
    for section, values in overrides.items():
        settings[section] = settings.get(section, {}) | values
    return config_of(model, **settings)


def assert_same_index(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if name.endswith(".npy"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("has_sinks", [False, True])
def test_the_index_is_that_of_stored_activations_and_each_row_is_read_once(
    model_folders, tmp_path: Path, storing, rows_read, has_sinks: bool
):
    model = model_folders["gpt2"]
    if has_sinks:
        model = with_sink(model, tmp_path / "model", bos=False, place=5)
    config = config_with_long_index(model)
    folder = RunFolder(tmp_path / "run")
    records = collected(train(config, folder))
    assert len(rows_read) == len(set(rows_read)) > 3000 / 32
    assert not folder.index_codes.exists()
    twin = storing(config, tmp_path / "twin")
    for step in (10, 16):
        assert_same_index(folder.feature_index(step), twin.feature_index(step))

    counts = [r for r in records if isinstance(r, PhaseRecord) and r.phase == BUILDING]
    done = [r.done for r in counts if r.done is not None]
    assert done == sorted(set(done))
    assert counts[0].done is None
    assert len(done) > 5
    assert done[-1] == counts[-1].total
    assert counts[-1].text == f"{BUILDING} {done[-1]:,} of {done[-1]:,} tokens"
    assert PhaseRecord(phase=SORTING) in records

    # The codes of all activations, encoded from memory.
    feed = TextFeed([config])
    held = feed.open_heldout(3000, tmp_path / "held")
    index = FeatureIndex.open(folder.feature_index(16))
    values = held.read(0, 3000)
    values = values[values.norm(dim=1) <= (index.manifest.largest_norm or math.inf)]
    assert (len(values) < held.num_tokens) == has_sinks
    encode = open_coder(TopKSAE.load(folder.sae)).encode
    parts = [encode(values[a : a + CHUNK].float()) for a in range(0, len(values), CHUNK)]
    assert np.array_equal(index.arrays.indices, torch.cat([p.indices for p in parts]).numpy())
    acts = torch.cat([p.acts for p in parts]).numpy()
    stored = index.arrays.acts.astype(np.float32) * np.float32(index.arrays.act_scale)
    np.testing.assert_allclose(stored, acts, rtol=2**-11)


def test_only_what_is_read_again_is_stored(model_folders, tmp_path: Path):
    config = config_with_long_index(model_folders["gemma2"])
    folder = RunFolder(tmp_path / "run")
    sizes_seen: set[int] = set()
    for record in train(config, folder):
        if isinstance(record, PhaseRecord) and record.phase == BUILDING:
            sizes_seen.add((folder.index_corpus / "hook_0").stat().st_size)
    [size] = sizes_seen
    assert 1000 <= size / (32 * 4) < 1000 + 512


VARIANTS: list[dict[str, dict]] = [
    {"sae": {"k": 2}},
    {"model": {"layer": 2}, "index": {"tokens": 2000}},
    {"sae": {"d_sae": 96}, "data": {"max_norm_multiple": 2.0}},
]


def test_runs_that_end_together_read_the_text_once_and_each_gets_its_own_index(
    model_folders, tmp_path: Path, rows_read
):
    data = VARIANTS[2]["data"]
    configs = [
        config_with_long_index(model_folders["gemma2"], **(variant | {"data": data}))
        for variant in VARIANTS
    ]
    members = [Member(c, RunFolder(tmp_path / f"member {n}")) for n, c in enumerate(configs)]
    collected(record for _, record in train_together(members))
    assert len(rows_read) == len(set(rows_read)) > 3000 / 32
    for number, (config, member) in enumerate(zip(configs, members, strict=True)):
        alone = RunFolder(tmp_path / f"alone {number}")
        collected(train(config, alone))
        assert_same_index(member.folder.feature_index(16), alone.feature_index(16))
        assert not member.folder.index_codes.exists()


def test_runs_that_end_at_different_steps_read_by_themselves(
    model_folders, tmp_path: Path, rows_read
):
    model = model_folders["gemma2"]
    configs = [
        config_with_long_index(model, train={"total_tokens": 64 * steps, "snapshot_every": None})
        for steps in (16, 18)
    ]
    members = [Member(c, RunFolder(tmp_path / str(n))) for n, c in enumerate(configs)]
    collected(record for _, record in train_together(members))
    for config, member, step in zip(configs, members, (16, 18), strict=True):
        alone = RunFolder(tmp_path / f"alone for {step}")
        collected(train(config, alone))
        assert_same_index(member.folder.feature_index(step), alone.feature_index(step))


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_an_imported_sae_is_indexed_while_the_text_is_read_once(
    model_folders, tmp_path: Path, storing, rows_read, activation: str
):
    """The width of a JumpReLU's widest code is known only at the end."""
    path = tmp_path / "sae.safetensors"
    if activation == "topk":
        sae = random_sae(3, d_in=32, d_sae=64)
    else:
        sae = random_jumprelu(0, d_in=32, d_sae=64)
        sae.threshold.fill_(8.0)
    sae.folded(1.0).save(path)
    config = config_with_long_index(model_folders["gemma2"], sae={"pretrained": str(path)})
    folder = RunFolder(tmp_path / "run")
    collected(train(config, folder))
    assert len(rows_read) == len(set(rows_read)) > 3000 / 32
    assert_same_index(folder.feature_index(0), storing(config, tmp_path / "twin").feature_index(0))


def test_activation_files_give_the_index_of_their_text(model_folders, tmp_path: Path):
    config = config_with_long_index(model_folders["gemma2"])
    collected(train(config, RunFolder(tmp_path / "text")))
    collected(save_activations(config, tmp_path / "saved"))
    data = config.data.model_copy(update={"activations": str(tmp_path / "saved")})
    folder = RunFolder(tmp_path / "files")
    collected(train(config.model_copy(update={"data": data}), folder))
    assert_same_index(folder.feature_index(16), RunFolder(tmp_path / "text").feature_index(16))


def test_a_forced_stop_while_the_index_is_read_leaves_nothing_and_the_run_resumes(
    model_folders, tmp_path: Path
):
    config = config_with_long_index(model_folders["gemma2"])
    records: list[AnyRecord] = []

    def should_stop() -> StopRequest:
        reading = any(
            isinstance(r, PhaseRecord) and r.phase == BUILDING and r.done for r in records
        )
        return StopRequest.FORCE if reading else StopRequest.NONE

    folder = RunFolder(tmp_path / "run")
    collected(train(config, folder, should_stop=should_stop), records)
    assert isinstance(records[-1], EndRecord)
    assert records[-1].reason == "stopped"
    assert folder.snapshots() == [10]
    assert not folder.index_codes.exists()
    assert not folder.index_corpus.exists()
    collected(train(config, folder, resume=True))
    collected(train(config, RunFolder(tmp_path / "whole")))
    assert_same_index(folder.feature_index(16), RunFolder(tmp_path / "whole").feature_index(16))


def test_runs_that_are_stopped_together_read_the_text_once(
    model_folders, tmp_path: Path, rows_read
):
    config = config_with_long_index(model_folders["gemma2"])
    records: list[AnyRecord] = []
    stop = stopping_at(12, StopRequest.STOP, records)
    members = [Member(config, RunFolder(tmp_path / str(n)), stop) for n in range(2)]
    for _, record in train_together(members):
        records.append(record)
    assert [r.reason for r in records if isinstance(r, EndRecord)] == ["stopped"] * 2
    assert len(rows_read) == len(set(rows_read)) > 3000 / 32
    assert_same_index(*(member.folder.feature_index(12) for member in members))


class Tokens:
    """Held-out tokens 0 to 9 in rows of 4, 3 and 3, whose activations come three at a time."""

    def __init__(self) -> None:
        self.values = torch.randn(10, 6)
        self.token_ids = np.arange(10, dtype=np.uint32)
        self.row_starts = np.array([0, 4, 7, 10])
        self.text_breaks = None

    def parts(
        self, num_tokens: int, check_stop: Callable[[], None]
    ) -> Iterator[list[torch.Tensor]]:
        end = self.row_starts[np.searchsorted(self.row_starts, num_tokens)]
        return ([part] for part in self.values[:end].split(3))


def reading(tokens: Tokens, folder: Path, num_tokens: int, limit: float = math.inf) -> IndexReading:
    sae = random_sae(0)
    return IndexReading(
        tokens,
        sae,
        folder,
        step=1,
        hook=0,
        num_tokens=num_tokens,
        limit=limit,  # type: ignore
    )


def test_one_reading_serves_runs_of_other_lengths_and_one_that_fails_costs_the_others_nothing(
    tmp_path: Path,
):
    tokens, ends = Tokens(), SimpleNamespace(checks=0)
    readings = [
        reading(tokens, tmp_path / "a", 5),
        reading(tokens, tmp_path / "b", 9),
        reading(tokens, tmp_path / "none is ordinary", 9, limit=1e-6),
        reading(tokens, tmp_path / "c", 4),
    ]

    def check() -> None:
        ends.checks += 1

    work, parts = encode_together(tokens, readings, check), []  # type: ignore[arg-type]
    while True:
        try:
            parts.append(next(work))
        except StopIteration as end:
            found = end.value
            break
    assert [tuple(part) for part in parts] == [(n, 10, "tokens") for n in (3, 6, 9, 10)]
    assert [None if one is None else one.corpus.codes.num_tokens for one in found] == [
        7,
        10,
        None,
        4,
    ]
    assert [one.corpus.row_starts.tolist() for one in found if one] == [
        [0, 4, 7], [0, 4, 7, 10], [0, 4],
    ]  # fmt: skip
    assert ends.checks > 4 * len(parts)

    none = reading(tokens, tmp_path / "none", 9, limit=1e-6)
    with pytest.raises(ValueError, match="Every held-out activation has a norm above"):
        list(encode_together(tokens, [none], check))  # type: ignore[arg-type]
