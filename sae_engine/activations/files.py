"""Activations in files: written once, trained on many times, larger than memory.

A file is safetensors with `activations [tokens, d_in]` (float32, float16 or bfloat16) and, if they
are known, `token_ids [tokens]` and `row_starts [rows + 1]`; its metadata say where they come from.
Several files in a folder are one set, in order of their names; those whose names begin with
`heldout` are never trained on, and without such files the last tenth of the tokens is not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_engine.activations.stream import TOKENS_PER_BLOCK, rows_for, rows_per_block
from sae_engine.errors import ConfigError
from sae_engine.files import published_file
from sae_engine.preflight import activation_paths
from sae_engine.text.packing import Cursor

FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
HELDOUT_FRACTION = 0.1


class Origin(NamedTuple):
    """Where activations were read; empty where a file does not say."""

    model: str = ""
    hook_name: str = ""
    ctx_len: int = 0
    dataset: str = ""


class Part(NamedTuple):
    """Tokens `first` to `last` of one file."""

    path: Path
    first: int
    last: int


class ActivationSet(NamedTuple):
    """A file, or a folder of files, split into training and held-out tokens."""

    train: list[Part]
    heldout: list[Part]
    d_in: int
    dtype: str
    has_tokens: bool
    """Whether every held-out token's id is known."""
    origin: Origin

    @property
    def num_train_tokens(self) -> int:
        return sum(part.last - part.first for part in self.train)


def write_part(
    path: Path,
    activations: Float[Tensor, "n d_in"],
    token_ids: Integer[np.ndarray, " n"],
    row_starts: Int[np.ndarray, " rows_plus_1"],
    origin: Origin,
) -> None:
    """Publish one file."""
    with published_file(path) as temporary:
        save_file(
            {
                "activations": activations.cpu().contiguous(),
                "token_ids": torch.from_numpy(token_ids.astype(np.int32)),
                "row_starts": torch.from_numpy(row_starts.astype(np.int64)),
            },
            temporary,
            metadata={name: str(value) for name, value in origin._asdict().items()},
        )


def open_set(path: Path | str) -> ActivationSet:
    """Look at the files' headers; raises `ConfigError` for what cannot be trained on."""
    files = activation_paths(path)
    train: list[Part] = []
    heldout: list[Part] = []
    shapes: set[tuple[int, str]] = set()
    origin, has_tokens = Origin(), True
    for file in files:
        tokens, d_in, dtype, names, found = _describe(file)
        shapes.add((d_in, dtype))
        origin = found if found != Origin() else origin
        has_tokens &= "token_ids" in names
        part = Part(file, 0, tokens)
        (heldout if file.name.startswith("heldout") else train).append(part)
    if len(shapes) > 1:
        raise _wrong(
            f"The files of '{path}' do not fit together; they hold activations of "
            f"{' and '.join(f'width {d} in {t}' for d, t in sorted(shapes))}."
        )
    if not train:
        raise _wrong(f"'{path}' holds only held-out activations and none to train on.")
    if not heldout:
        train, heldout = _split(train)
    d_in, dtype = shapes.pop()
    return ActivationSet(train, heldout, d_in, dtype, has_tokens, origin)


def _describe(file: Path) -> tuple[int, int, str, set[str], Origin]:
    try:
        with safe_open(file, framework="np") as opened:
            names = set(opened.keys())
            metadata: dict[str, Any] = opened.metadata() or {}
            if "activations" not in names:
                raise _wrong(
                    f"'{file}' holds no tensor 'activations'; it has {', '.join(sorted(names))}."
                )
            view = opened.get_slice("activations")
            shape, dtype = view.get_shape(), view.get_dtype()
            num_ids = opened.get_slice("token_ids").get_shape() if "token_ids" in names else None
    except FileNotFoundError:
        raise _wrong(f"There is no file or folder '{file}'.") from None
    except (OSError, SafetensorError) as error:
        raise _wrong(f"'{file}' is not a readable safetensors file: {error}.") from None
    if len(shape) != 2 or dtype not in FLOATS:
        raise _wrong(
            f"'activations' in '{file}' is {dtype} {shape}; it must be [tokens, d_in] in float32, "
            f"float16 or bfloat16."
        )
    if num_ids is not None and num_ids != [shape[0]]:
        raise _wrong(f"'{file}' has {shape[0]} activations but token_ids of shape {num_ids}.")
    known = {name: metadata[name] for name in Origin._fields if name in metadata}
    if "ctx_len" in known:
        known["ctx_len"] = int(known["ctx_len"])
    return shape[0], shape[1], dtype, names, Origin(**known)


def _split(parts: list[Part]) -> tuple[list[Part], list[Part]]:
    """Hold out the last tenth."""
    total = sum(part.last for part in parts)
    left = total - max(1, int(total * HELDOUT_FRACTION))
    train: list[Part] = []
    heldout: list[Part] = []
    for part in parts:
        cut = max(0, min(part.last, left))
        left -= part.last
        if cut:
            train.append(part._replace(last=cut))
        if cut < part.last:
            heldout.append(part._replace(first=cut))
    return train, heldout


def _wrong(message: str) -> ConfigError:
    return ConfigError.of("data.activations", message)


class FileSource:
    """Blocks of a set's training tokens, again from the beginning when they end.

    Where the files know their rows, blocks are cut as they are when text is read, so that training
    from files equals training on the text. A block ends with its file. In the cursor, `document` is
    the number of the file.
    """

    def __init__(
        self,
        files: ActivationSet,
        cursor: Cursor,
        device: torch.device,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._files = files
        self._device = device
        self._check_stop = check_stop
        self.cursor = cursor

    def next_block(self) -> list[Float[Tensor, "n d_in"]]:
        self._check_stop()
        epoch, number, offset = self.cursor
        part = self._files.train[number]
        first = part.first + offset
        with safe_open(part.path, framework="pt") as opened:
            last = self._block_end(opened, first, part.last)
            values: Tensor = opened.get_slice("activations")[first:last]
        if last < part.last:
            self.cursor = Cursor(epoch, number, last - part.first)
        elif number + 1 < len(self._files.train):
            self.cursor = Cursor(epoch, number + 1, 0)
        else:
            self.cursor = Cursor(epoch + 1, 0, 0)
        return [values.to(self._device)]

    def _block_end(self, opened: Any, first: int, limit: int) -> int:
        if "row_starts" not in opened.keys() or not self._files.origin.ctx_len:  # noqa: SIM118
            return min(first + TOKENS_PER_BLOCK, limit)
        starts: Tensor = opened.get_tensor("row_starts")
        row = int(torch.searchsorted(starts, first)) + rows_per_block(self._files.origin.ctx_len)
        return min(int(starts[min(row, len(starts) - 1)]), limit)


class HeldoutFiles:
    """The held-out tokens of a set; see `activations.Heldout` for the attributes."""

    def __init__(self, files: ActivationSet, max_tokens: int) -> None:
        self.ids = None
        values: list[Tensor] = []
        token_ids: list[np.ndarray] = []
        starts: list[np.ndarray] = [np.zeros(1, np.int64)]
        count = 0
        for part in files.heldout:
            if count >= max_tokens:
                break
            with safe_open(part.path, framework="pt") as opened:
                ends = _row_ends(opened, part, max_tokens - count)
                last = int(ends[-1])
                values.append(opened.get_slice("activations")[part.first : last])
                if files.has_tokens:
                    ids: Tensor = opened.get_slice("token_ids")[part.first : last]
                    token_ids.append(ids.numpy().astype(np.uint32))
            starts.append(ends - part.first + count)
            count += last - part.first
        self._values = torch.cat(values)
        self.token_ids = np.concatenate(token_ids) if files.has_tokens else None
        self.row_starts = np.concatenate(starts)
        self.num_tokens = count

    def first(
        self, hook: int, num_tokens: int, check_stop: Callable[[], None] = lambda: None
    ) -> Float[Tensor, "n d_in"]:
        return self._values[: self.row_starts[rows_for(self, num_tokens)]]

    def close(self) -> None:
        """There is nothing to remove."""


def _row_ends(opened: Any, part: Part, wanted: int) -> Int[np.ndarray, " rows"]:
    """Where the first rows of a part end that hold at least `wanted` tokens, or all of them."""
    if "row_starts" not in opened.keys():  # noqa: SIM118
        return np.array([min(part.last, part.first + wanted)], np.int64)
    starts = opened.get_tensor("row_starts").numpy()
    ends = np.append(starts[(starts > part.first) & (starts < part.last)], part.last)
    return ends[: int(np.searchsorted(ends, part.first + wanted)) + 1]
