"""A feature index tells when a file of it is missing, truncated or changed, and which one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_engine.features.index.format import IndexArrays
from sae_engine.features.index.reader import FeatureIndex, IndexDamagedError, NoSuchFeatureError
from tests.sae_engine.features.index_reference import D_IN, build, byte_level_tokenizer, random_case

DAMAGED_FILES = [f"{f.name}.npy" for f in dataclasses.fields(IndexArrays)] + [
    "tokenizer.json",
    "sae.safetensors",
]


@pytest.fixture(scope="module")
def final_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = byte_level_tokenizer().get_vocab_size()
    folder = tmp_path_factory.mktemp("run")
    return build(folder, random_case(1), unembed=torch.randn(size, D_IN), final=True)


@pytest.mark.parametrize("name", [*DAMAGED_FILES, "manifest.json"])
def test_a_missing_file_is_found_at_opening_and_named(final_index: Path, name: str) -> None:
    file = final_index / name
    content = file.read_bytes()
    file.unlink()
    try:
        with pytest.raises(IndexDamagedError, match=f"{name} is missing"):
            FeatureIndex.open(final_index)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_a_truncated_file_is_found_at_opening_and_named(final_index: Path, name: str) -> None:
    file = final_index / name
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    try:
        with pytest.raises(IndexDamagedError, match=f"{name} has {len(content) - 1} bytes"):
            FeatureIndex.open(final_index)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_a_changed_bit_is_found_by_verifying_and_named(final_index: Path, name: str) -> None:
    file = final_index / name
    content = bytearray(file.read_bytes())
    index = FeatureIndex.open(final_index)
    index.verify()
    content[-1] ^= 1
    file.write_bytes(content)
    try:
        with pytest.raises(IndexDamagedError, match=f"{name} does not match"):
            index.verify()
    finally:
        content[-1] ^= 1
        file.write_bytes(content)


def test_an_array_with_a_broken_header_is_named(final_index: Path) -> None:
    file = final_index / "acts.npy"
    content = file.read_bytes()
    file.write_bytes(b"\0" * len(content))
    try:
        with pytest.raises(IndexDamagedError, match=r"acts\.npy cannot be read"):
            FeatureIndex.open(final_index)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: "{", "cannot be read"),
        (lambda m: json.dumps(m | {"format_version": 99}), "format version 99"),
        (lambda m: json.dumps(m | {"files": {}}), "does not list every array"),
    ],
)
def test_a_manifest_that_is_not_ours_is_named(final_index: Path, change, message: str) -> None:
    file = final_index / "manifest.json"
    content = file.read_text("utf-8")
    file.write_text(change(json.loads(content)), "utf-8")
    try:
        with pytest.raises(IndexDamagedError, match=rf"manifest\.json .*{message}"):
            FeatureIndex.open(final_index)
    finally:
        file.write_text(content, "utf-8")


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("latent_starts.npy", lambda index: index.features()),
        ("latent_tokens.npy", lambda index: [index.row(i, {}) for i in range(index.d_sae)]),
        ("positive_logit_ids.npy", lambda index: [index.feature(i) for i in range(index.d_sae)]),
        ("token_ids.npy", lambda index: [index.feature(i) for i in range(index.d_sae)]),
    ],
)
def test_a_question_that_fails_on_changed_values_names_their_file(
    final_index: Path, name: str, ask: Callable[[FeatureIndex], object]
) -> None:
    file = final_index / name
    content = file.read_bytes()
    values = np.load(file)
    np.save(file, values + values.dtype.type(2**31))
    try:
        with pytest.raises(IndexDamagedError, match=f"{name} does not match"):
            ask(FeatureIndex.open(final_index))
    finally:
        file.write_bytes(content)


def test_a_mistake_of_whoever_asks_is_not_taken_for_damage(final_index: Path) -> None:
    index = FeatureIndex.open(final_index)
    with pytest.raises(NoSuchFeatureError):
        index.facts(index.d_sae)
    with pytest.raises(TypeError):
        index.facts("first")  # pyright: ignore[reportArgumentType]
