"""PyTorch pickles are read if they hold tensors by name, and nothing in them is executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sae_engine.errors import UserError
from sae_engine.interop.load import load_pretrained
from sae_engine.interop.pickles import MAX_BYTES, as_safetensors, write_tensors
from tests.sae_engine.interop.test_load import Parts, assert_same, keep_largest, trainer


class Attack:
    """A pickle that creates a file when it is opened by Python's own unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.path,)


def test_a_folder_of_dictionary_learning_is_read_as_it_is_saved(tmp_path: Path):
    parts = Parts()
    torch.save(parts.linear | {"k": torch.tensor(4)}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps(trainer("AutoEncoderTopK")))
    z = keep_largest(parts.pre)
    assert_same(load_pretrained(tmp_path), parts.x, z, parts.decoded(z))


def test_code_in_a_pickle_is_not_executed(tmp_path: Path):
    path, trace = tmp_path / "ae.pt", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"W_enc": Attack(trace)}))
    words = "is not a PyTorch file that holds only tensors, so it is not opened"
    with pytest.raises(UserError, match=words), as_safetensors(path):
        pass
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x02noise", "is not a PyTorch file that holds only tensors"),
        ({"W_enc": torch.zeros(2), "config": {"k": 3}}, "holds dict 'config' besides tensors"),
        ([torch.zeros(2)], "holds a list instead of tensors by name"),
        ({"W_enc": torch.zeros(1).expand(2**40)}, "holds tensors of more than"),
        ({"W_enc": torch.eye(3).to_sparse()}, "in a format other than dense numbers"),
    ],
)
def test_a_file_that_holds_anything_else_is_refused(tmp_path: Path, content: object, words: str):
    path, target = tmp_path / "ae.pt", tmp_path / "target"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    reason = write_tensors(str(path), str(target), MAX_BYTES)
    assert reason is not None
    assert words in reason
    assert "\n" not in reason
    assert not target.exists()


def test_a_file_over_the_limit_is_not_opened(tmp_path: Path):
    path = tmp_path / "ae.pt"
    torch.save({"W_enc": torch.zeros(100)}, path)
    with pytest.raises(UserError, match="pickles are read up to 500"), as_safetensors(path, 500):
        pass


def test_a_folder_with_several_pickles_needs_a_name(tmp_path: Path):
    for layer in range(9):
        (tmp_path / f"layer{layer}.sae.pt").touch()
    with pytest.raises(UserError, match=r"several SAEs; name one of its files, such as layer0"):
        load_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not say its k"):
        load_pretrained(tmp_path / "layer3.sae.pt")
