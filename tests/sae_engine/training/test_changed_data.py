"""A run resumes on the data that it began with, and on no other data at the same place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sae_engine.activations.feed import Contents, TextFeed
from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, EndRecord, StopRequest
from sae_engine.text import stdlib
from sae_engine.training.loop import train
from sae_engine.training.run import _require_same_contents
from tests.sae_engine.training.test_loop import collected, config_of, stopping_at

pytestmark = pytest.mark.usefixtures("small_blocks")


def write_text(folder: Path, changed: bool = False) -> Path:
    """Documents of which the last four fifths can change; every length stays."""
    path = folder / "text.jsonl"
    words = ["this is", "that was"]
    texts = [f"{words[changed and n > 300]} number {n} of many" for n in range(1500)]
    path.write_text("\n".join(json.dumps({"text": text.ljust(40)}) for text in texts))
    return path


def write_activations(folder: Path, changed: bool = False) -> Path:
    path = folder / "acts.safetensors"
    values = torch.randn(3000, 32, generator=torch.Generator().manual_seed(0))
    save_file({"activations": values + changed * (torch.arange(3000) > 600)[:, None]}, path)
    return path


WRITERS = {"dataset": write_text, "activations": write_activations}


def begun(config: RunConfig, folder: RunFolder) -> None:
    """Train a step and write a checkpoint."""
    records: list[AnyRecord] = []
    collected(
        train(config, folder, should_stop=stopping_at(1, StopRequest.FORCE, records)), records
    )


def resumed(config: RunConfig, folder: RunFolder) -> EndRecord:
    records: list[AnyRecord] = []
    stop = stopping_at(2, StopRequest.FORCE, records)
    collected(train(config, folder, should_stop=stop, resume=True), records)
    assert isinstance(records[-1], EndRecord)
    return records[-1]


@pytest.mark.parametrize("setting", WRITERS)
def test_a_run_resumes_unless_its_files_have_changed(model_folders, tmp_path: Path, setting: str):
    write = WRITERS[setting]
    path = write(tmp_path)
    data = {"heldout_tokens": 1000, setting: str(path)}
    config = config_of(model_folders["gemma2"], data=data, index={"tokens": 1000})
    folder = RunFolder(tmp_path / "run")
    begun(config, folder)
    os.utime(path, (0, 0))
    assert resumed(config, folder).step == 2
    write(tmp_path, changed=True)
    with pytest.raises(UserError, match=rf"'{path}' has changed since this run began.*restore"):
        resumed(config, folder)
    _forget_contents(folder)  # as of a version that did not keep them
    assert resumed(config, folder).step == 3


def _forget_contents(folder: RunFolder) -> None:
    with safe_open(folder.checkpoint, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    del state["contents"]
    save_file(load_file(folder.checkpoint), folder.checkpoint, {"state": json.dumps(state)})


@pytest.mark.parametrize(("before", "now"), [([], "a"), ([""], "a"), (["a"], ""), (["a"], "a")])
def test_data_that_cannot_be_compared_are_taken_for_the_same(before: list[str], now: str):
    _require_same_contents(before, [Contents("name", now)])


def test_of_a_mixture_the_dataset_that_changed_is_named():
    now = [Contents("first", "a"), Contents("second", "c")]
    with pytest.raises(UserError, match=r"'second' has changed .* restore its files, or"):
        _require_same_contents(["a", "b"], now)


def test_another_python_is_named_where_the_embedded_corpus_changed():
    now = [Contents("python-stdlib", "b")]
    with pytest.raises(UserError, match="use the same version of Python, or start a new run"):
        _require_same_contents(["a"], now)


def test_the_embedded_corpus_is_known_by_its_text(model_folders, monkeypatch):
    feed = TextFeed([config_of(model_folders["gemma2"])])
    [before] = feed.contents
    assert before.name == "python-stdlib"
    assert len(before.hash) == 64
    documents = stdlib.named_documents()
    monkeypatch.setattr(stdlib, "named_documents", lambda: documents[:-1])
    del feed._contents
    assert feed.contents[0].hash != before.hash
