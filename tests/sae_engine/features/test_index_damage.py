"""A damaged file of a feature index is reported by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_engine.features.export.source import ExportSource
from sae_engine.features.export.write import export_features
from sae_engine.features.geometry.files import width_of
from sae_engine.features.geometry.rows import DecoderRows
from sae_engine.features.index.format import IndexArrays
from sae_engine.features.index.history import feature_history
from sae_engine.features.index.reader import FeatureIndex, IndexDamagedError, NoSuchFeatureError
from sae_engine.features.labels.examples import examples_of
from sae_engine.presets import resolve_config
from tests.sae_engine.features.index_reference import D_IN, build, byte_level_tokenizer, random_case

ARRAYS = [f.name for f in dataclasses.fields(IndexArrays) if f.name != "act_scale"]
DAMAGED_FILES = [f"{name}.npy" for name in ARRAYS] + [
    "tokenizer.json",
    "sae.safetensors",
]


@pytest.fixture(scope="module")
def final_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    size, case = byte_level_tokenizer().get_vocab_size(), random_case(1)
    return build(
        tmp_path_factory.mktemp("run"),
        case,
        text_breaks=np.array([3, 50]),
        unembed=torch.randn(size, D_IN),
        final=True,
        write_sae=lambda path: save_file({"W_dec": torch.ones(30, D_IN)}, path),
    )


@contextmanager
def restored(file: Path) -> Generator[bytes]:
    """Yield the content of a file, and write it back at the end."""
    content = file.read_bytes()
    try:
        yield content
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("name", [*DAMAGED_FILES, "manifest.json"])
def test_opening_reports_a_missing_file(final_index: Path, name: str) -> None:
    with restored(final_index / name):
        (final_index / name).unlink()
        with pytest.raises(IndexDamagedError, match=f"{name} is missing"):
            FeatureIndex.open(final_index)


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_opening_reports_a_truncated_file(final_index: Path, name: str) -> None:
    with restored(final_index / name) as content:
        (final_index / name).write_bytes(content[:-1])
        with pytest.raises(IndexDamagedError, match=f"{name} has {len(content) - 1} bytes"):
            FeatureIndex.open(final_index)


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_verifying_reports_a_changed_bit(final_index: Path, name: str) -> None:
    index = FeatureIndex.open(final_index)
    index.verify()
    with restored(final_index / name) as content:
        (final_index / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(IndexDamagedError, match=f"{name} does not match"):
            index.verify()


def test_opening_reports_an_array_with_a_broken_header(final_index: Path) -> None:
    with restored(final_index / "acts.npy") as content:
        (final_index / "acts.npy").write_bytes(b"\0" * len(content))
        with pytest.raises(IndexDamagedError, match=r"acts\.npy cannot be read"):
            FeatureIndex.open(final_index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: "{", "cannot be read"),
        (lambda m: json.dumps(m | {"format_version": 99}), "format version 99"),
        (
            lambda m: json.dumps({"format_version": 1, "step": m["step"]}),
            "format version 1, but this program reads version 2; open it with the version",
        ),
        (lambda m: json.dumps(m | {"files": {}}), "does not list every array"),
    ],
)
def test_opening_reports_an_invalid_manifest(final_index: Path, change, message: str) -> None:
    file = final_index / "manifest.json"
    with restored(file) as content:
        file.write_text(change(json.loads(content)), "utf-8")
        with pytest.raises(IndexDamagedError, match=rf"manifest\.json .*{message}"):
            FeatureIndex.open(final_index)


def all_features(index: FeatureIndex) -> None:
    for feature in range(index.d_sae):
        index.feature(feature)


def all_examples(index: FeatureIndex) -> None:
    for feature in range(index.d_sae):
        examples_of(index, feature)


def export_parquet(index: FeatureIndex) -> None:
    source = ExportSource(index, "id", "name", resolve_config("tiny", {}), {})
    export_features(source, "parquet", index.folder.parent / "export")


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("latent_starts.npy", lambda index: index.features()),
        ("latent_starts.npy", lambda index: index.max_activations(range(index.d_sae))),
        ("latent_tokens.npy", lambda index: [index.row(i, {}) for i in range(index.d_sae)]),
        ("positive_logit_ids.npy", all_features),
        ("token_ids.npy", all_features),
        ("token_ids.npy", all_examples),
        ("pair_latents.npy", export_parquet),
    ],
)
def test_a_query_that_fails_because_of_changed_values_reports_their_file(
    final_index: Path, name: str, query: Callable[[FeatureIndex], object]
) -> None:
    file = final_index / name
    with restored(file):
        values = np.load(file)
        np.save(file, values + values.dtype.type(2**31))
        index = FeatureIndex.open(final_index)
        with pytest.raises(IndexDamagedError, match=f"{name} does not match"):
            query(index)


@pytest.mark.parametrize(
    "query",
    [
        lambda index: feature_history([index], 0),
        lambda index: width_of(index.folder / "sae.safetensors"),
        lambda index: DecoderRows(index.folder / "sae.safetensors"),
    ],
)
def test_reading_the_decoder_reports_a_damaged_sae(
    final_index: Path, query: Callable[[FeatureIndex], object]
) -> None:
    file = final_index / "sae.safetensors"
    index = FeatureIndex.open(final_index)
    query(index)
    with restored(file) as content:
        for damaged in (b"\xff" * len(content), None):
            file.write_bytes(damaged) if damaged else file.unlink()
            with pytest.raises(IndexDamagedError, match=r"sae\.safetensors' is not an SAE"):
                query(index)


def test_a_mistake_of_the_caller_is_not_reported_as_damage(final_index: Path) -> None:
    index = FeatureIndex.open(final_index)
    with pytest.raises(NoSuchFeatureError):
        index.summary(index.d_sae)
    with pytest.raises(TypeError):
        index.summary("first")  # pyright: ignore[reportArgumentType]
