"""Activations in files: written once, trained on many times, larger than memory.

A file is safetensors with `activations [tokens, d_in]` (float32, float16 or bfloat16) and, if they
are known, `token_ids [tokens]`, `row_starts [rows + 1]` and, in files of held-out tokens,
`text_breaks`; its metadata say where they come from.
The files of a folder are one set, in order of their names. Those named `heldout*` are never trained
on; without them, the last tenth of the tokens is not. Read by `feed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_engine.activations.heldout import num_rows_holding
from sae_engine.activations.stream import TOKENS_PER_BLOCK, rows_per_block
from sae_engine.errors import ConfigError, cause_of
from sae_engine.files import published_file
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.preflight import activation_paths
from sae_engine.sizes import TOKENS_PER_FORWARD
from sae_engine.text.contents import contents_hash
from sae_engine.text.packing import Cursor

HELDOUT_FRACTION = 0.1
INTEGERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32")


class FileMetadata(NamedTuple):
    """Where a file's activations were read; empty where the file does not say."""

    model: str = ""
    hook_name: str = ""
    ctx_len: int = 0
    dataset: str = ""


class FileSlice(NamedTuple):
    """Tokens `first` up to `last` of a file."""

    path: Path
    first: int
    last: int


class ActivationSet(NamedTuple):
    """A file, or a folder of files, split into training and held-out tokens."""

    train: list[FileSlice]
    heldout: list[FileSlice]
    d_in: int
    dtype: str
    has_tokens: bool
    """Whether every held-out token's id is known."""
    metadata: FileMetadata

    @property
    def num_train_tokens(self) -> int:
        return sum(part.last - part.first for part in self.train)

    def contents(self) -> str:
        """See `contents_hash`; raises `ConfigError`."""
        files = {part.path.name: part.path for part in (*self.train, *self.heldout)}
        try:
            return contents_hash(files)
        except OSError as error:
            raise _unusable(
                f"'{error.filename}' is not a readable file: {cause_of(error)}."
            ) from error


def write_activation_file(
    path: Path,
    activations: Float[Tensor, "n d_in"],
    token_ids: Integer[np.ndarray, " n"],
    row_starts: Int[np.ndarray, " rows_plus_1"],
    metadata: FileMetadata,
    text_breaks: Int[np.ndarray, " breaks"] | None = None,
) -> None:
    tensors = {
        "activations": activations.cpu().contiguous(),
        "token_ids": torch.from_numpy(token_ids.astype(np.int32)),
        "row_starts": torch.from_numpy(row_starts.astype(np.int64)),
    }
    if text_breaks is not None:
        tensors["text_breaks"] = torch.from_numpy(text_breaks.astype(np.int64))
    with published_file(path) as temporary:
        save_file(
            tensors,
            temporary,
            metadata={name: str(value) for name, value in metadata._asdict().items()},
        )


def open_activation_set(path: Path | str) -> ActivationSet:
    """Read the files' headers; raises `ConfigError` for files that cannot be trained on."""
    train: list[FileSlice] = []
    heldout: list[FileSlice] = []
    shapes: set[tuple[int, str]] = set()
    metadata, has_tokens = FileMetadata(), True
    for file in activation_paths(path):
        header = _read_header(file)
        shapes.add((header.d_in, header.dtype))
        metadata = header.metadata if header.metadata != FileMetadata() else metadata
        has_tokens &= header.has_tokens
        is_heldout = file.name.startswith("heldout")
        (heldout if is_heldout else train).append(FileSlice(file, 0, header.num_tokens))
    if len(shapes) > 1:
        found = " and ".join(f"width {d_in} in {dtype}" for d_in, dtype in sorted(shapes))
        raise _unusable(
            f"The files of '{path}' do not fit together; they hold activations of {found}."
        )
    if not train:
        raise _unusable(f"'{path}' holds only held-out activations and none to train on.")
    if not heldout:
        train, heldout = _hold_out_end(train)
    train, heldout = ([part for part in parts if part.last] for parts in (train, heldout))
    if not train or not heldout:
        raise _unusable(
            f"'{path}' holds too few activations: at least one to train on and one held out are "
            "needed."
        )
    d_in, dtype = shapes.pop()
    return ActivationSet(train, heldout, d_in, dtype, has_tokens, metadata)


class _Header(NamedTuple):
    num_tokens: int
    d_in: int
    dtype: str
    has_tokens: bool
    metadata: FileMetadata


def _read_header(file: Path) -> _Header:
    try:
        with safe_open(file, framework="np") as opened:
            names = set(opened.keys())
            found: dict[str, Any] = opened.metadata() or {}
            if "activations" not in names:
                raise _unusable(
                    f"'{file}' holds no tensor 'activations'; it has {', '.join(sorted(names))}."
                )
            view = opened.get_slice("activations")
            shape, dtype = view.get_shape(), view.get_dtype()
            has_tokens = "token_ids" in names
            ids = opened.get_slice("token_ids") if has_tokens else None
            ids_shape, ids_dtype = shape[:1], "I32"
            if ids is not None:
                ids_shape, ids_dtype = ids.get_shape(), ids.get_dtype()
            starts = None
            if "row_starts" in names:
                are_integers = opened.get_slice("row_starts").get_dtype() in INTEGERS
                starts = opened.get_tensor("row_starts") if are_integers else np.empty(0)
    except FileNotFoundError:
        raise _unusable(f"There is no file or folder '{file}'.") from None
    except (OSError, SafetensorError) as error:
        raise _unusable(
            f"'{file}' is not a readable safetensors file: {cause_of(error)}."
        ) from None
    if len(shape) != 2 or not shape[1] or dtype not in ("F32", "F16", "BF16"):
        raise _unusable(
            f"'activations' in '{file}' is {dtype} {shape}; it must be [tokens, d_in] in float32, "
            "float16 or bfloat16."
        )
    if ids_shape != shape[:1]:
        raise _unusable(f"'{file}' has {shape[0]} activations but token_ids of shape {ids_shape}.")
    if ids_dtype not in INTEGERS:
        raise _unusable(f"'{file}' has token_ids of type {ids_dtype}; they must be integers.")
    if starts is not None and not _are_row_starts(starts, shape[0]):
        raise _unusable(
            f"'row_starts' in '{file}' must rise from 0 to the number of activations, {shape[0]}."
        )
    known = {name: found[name] for name in FileMetadata._fields if name in found}
    if "ctx_len" in known:
        known["ctx_len"] = _ctx_len(file, known["ctx_len"])
    return _Header(shape[0], shape[1], dtype, has_tokens, FileMetadata(**known))


def _are_row_starts(starts: np.ndarray, num_tokens: int) -> bool:
    if starts.ndim != 1 or not len(starts):
        return False
    rises = bool((np.diff(starts) >= 0).all())
    return rises and int(starts[0]) == 0 and int(starts[-1]) == num_tokens


def _ctx_len(file: Path, text: str) -> int:
    """0 if it is not known."""
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise _unusable(
            f"The metadata of '{file}' give ctx_len as '{text}'; it must be the number of tokens "
            "in a row, or absent."
        )
    return int(text)


def require_token_ids(files: ActivationSet, vocab_size: int) -> None:
    """Raise `ConfigError` if a held-out token is not in the language model's vocabulary."""
    for part in files.heldout if files.has_tokens else ():
        with safe_open(part.path, framework="np") as opened:
            ids = opened.get_slice("token_ids")[part.first : part.last]
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab_size:
            raise _unusable(
                f"'{part.path}' has the token id {low if low < 0 else high}, but the model's ids "
                f"are 0 to {vocab_size - 1}; set model.name to the model that was read, or leave "
                "out token_ids."
            )


def _hold_out_end(parts: list[FileSlice]) -> tuple[list[FileSlice], list[FileSlice]]:
    """Split a set without held-out files: the last tenth of its tokens is held out."""
    num_tokens = sum(part.last for part in parts)
    left = num_tokens - max(1, int(num_tokens * HELDOUT_FRACTION))
    train: list[FileSlice] = []
    heldout: list[FileSlice] = []
    for part in parts:
        cut = max(0, min(part.last, left))
        left -= part.last
        if cut:
            train.append(part._replace(last=cut))
        if cut < part.last:
            heldout.append(part._replace(first=cut))
    return train, heldout


def _unusable(message: str) -> ConfigError:
    return ConfigError.of("data.activations", message)


class FileSource:
    """An `ActivationSource` of a set's training tokens, which restarts when they end.

    If the files have `row_starts`, blocks are cut as they are when text is read, so training from
    files equals training on the text. A block ends with its file. In the cursor, `document` is the
    number of the file.
    """

    def __init__(
        self,
        files: ActivationSet,
        cursor: Cursor,
        device: torch.device,
        check_stop: CheckStop = never_stop,
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
        ctx_len = self._files.metadata.ctx_len
        if "row_starts" not in opened.keys() or not ctx_len:  # noqa: SIM118
            return min(first + TOKENS_PER_BLOCK, limit)
        starts: Tensor = opened.get_tensor("row_starts")
        num_rows = rows_per_block(ctx_len)
        ends = starts[num_rows::num_rows].contiguous()  # rows may be empty, blocks are not
        place = int(torch.searchsorted(ends, first, right=True))
        return min(int(ends[place]), limit) if place < len(ends) else limit


class HeldoutFiles:
    """A set's held-out tokens, the first in memory; see `heldout.Heldout` for the attributes."""

    def __init__(
        self,
        files: ActivationSet,
        max_tokens: int,
        check_stop: CheckStop = never_stop,
        num_in_memory: int | None = None,
    ) -> None:
        """At least `num_in_memory` tokens are in memory, by default all."""
        self.ids = self.at = None
        self.num_context = 0
        self._pieces: list[FileSlice] = []
        token_ids: list[np.ndarray] = []
        starts: list[np.ndarray] = [np.zeros(1, np.int64)]
        breaks: list[np.ndarray | None] = []
        self.num_tokens = 0
        for part in files.heldout:
            if self.num_tokens >= max_tokens:
                break
            with safe_open(part.path, framework="pt") as opened:
                ends = _row_ends(opened, part, max_tokens - self.num_tokens)
                for piece in _pieces(part.first, int(ends[-1])):
                    check_stop()
                    self._pieces.append(FileSlice(part.path, piece.start, piece.stop))
                    if files.has_tokens:
                        ids: Tensor = opened.get_slice("token_ids")[piece]
                        token_ids.append(ids.numpy().astype(np.uint32))
                within = _text_breaks(opened, part.first, int(ends[-1]))
            shift = self.num_tokens - part.first
            starts.append(ends + shift)
            breaks.append(None if within is None else within + shift)
            self.num_tokens += int(ends[-1]) - part.first
        self.token_ids = np.concatenate(token_ids) if files.has_tokens else None
        self.row_starts = np.concatenate(starts)
        known = [some for some in breaks if some is not None]
        self.text_breaks = np.concatenate(known) if len(known) == len(breaks) else None
        self.num_stored = self.num_tokens
        wanted = self._end(max_tokens if num_in_memory is None else num_in_memory)
        self._values = torch.cat(list(self._read(0, wanted, check_stop)))

    def read(
        self, hook: int, num_tokens: int, check_stop: CheckStop = never_stop
    ) -> Float[Tensor, "n d_in"]:
        end = self._end(num_tokens)
        assert end <= len(self._values)
        return self._values[:end]

    def parts(
        self, num_tokens: int, check_stop: CheckStop = never_stop
    ) -> Iterator[list[Float[Tensor, "n d_in"]]]:
        end, in_memory = self._end(num_tokens), len(self._values)
        for values in self._values[:end].split(TOKENS_PER_FORWARD):
            yield [values]
        if end > in_memory:
            for piece in self._read(in_memory, end, check_stop):
                for values in piece.split(TOKENS_PER_FORWARD):
                    yield [values]

    def _end(self, num_tokens: int) -> int:
        """Number of tokens in the first rows that hold at least `num_tokens`."""
        return int(self.row_starts[num_rows_holding(num_tokens, self.row_starts)])

    def _read(self, first: int, last: int, check_stop: CheckStop) -> Iterator[Tensor]:
        """Activations `first` up to `last`, piece by piece, read from the files."""
        begin = 0
        for piece in self._pieces:
            check_stop()
            end = begin + piece.last - piece.first
            if begin < last and end > first:
                low, high = max(first - begin, 0), min(last, end) - begin
                with safe_open(piece.path, framework="pt") as opened:
                    view = opened.get_slice("activations")
                    yield view[piece.first + low : piece.first + high]
            begin = end

    def close(self) -> None:
        """There is nothing to remove."""


def _pieces(first: int, last: int) -> Iterator[slice]:
    """Cut a range of tokens into blocks; an empty range is one empty piece."""
    begins = range(first, max(last, first + 1), TOKENS_PER_BLOCK)
    return (slice(begin, min(begin + TOKENS_PER_BLOCK, last)) for begin in begins)


def _text_breaks(opened: Any, first: int, last: int) -> Int[np.ndarray, " breaks"] | None:
    """The breaks among some tokens of a file, if the file has any."""
    if "text_breaks" not in opened.keys():  # noqa: SIM118
        return None
    breaks = np.unique(opened.get_tensor("text_breaks").long().numpy())
    return breaks[(breaks >= first) & (breaks < last)]


def _row_ends(opened: Any, part: FileSlice, wanted: int) -> Int[np.ndarray, " rows"]:
    """The ends of a slice's first rows that hold at least `wanted` tokens, or of all its rows."""
    if "row_starts" not in opened.keys():  # noqa: SIM118
        return np.array([min(part.last, part.first + wanted)], np.int64)
    starts = opened.get_tensor("row_starts").numpy()
    ends = np.append(starts[(starts > part.first) & (starts < part.last)], part.last)
    return ends[: int(np.searchsorted(ends, part.first + wanted)) + 1]
