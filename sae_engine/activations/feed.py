"""What feeds a pass: the language model reading text, or activation files.

Opened by `train` for all the runs that share the pass; read by them and by `heldout`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from sae_engine.activations.files import (
    FileSource,
    HeldoutFiles,
    Origin,
    open_set,
    write_part,
)
from sae_engine.activations.stream import Heldout, HeldoutText, Source, TextSource, TimeCall
from sae_engine.errors import ConfigError, UserError
from sae_engine.model.language_model import LanguageModel
from sae_engine.model.loading import resolve_device
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, NoticeRecord, PhaseRecord
from sae_engine.text.packing import Cursor, Packing, count_tokens, heldout_rows, training_rows

TOKENS_PER_FILE = 2**18
CheckStop = Callable[[], None]


class Feed(Protocol):
    """Where activations come from."""

    device: torch.device
    notices: list[str]
    """Sentences about it that a person should know."""

    @property
    def model(self) -> LanguageModel | None:
        """The language model whose activations these are; None if their text is not known."""
        ...

    def hook_of(self, config: RunConfig) -> int:
        """The place of a run's activations among those of a block."""
        ...

    def d_in(self, hook: int) -> int: ...
    def hook_name(self, hook: int) -> str: ...
    def count_tokens(self) -> int:
        """Training tokens in one epoch."""
        ...

    def open_source(
        self, cursor: Cursor, check_stop: CheckStop, time_call: TimeCall = nullcontext
    ) -> Source: ...
    def open_heldout(self, num_tokens: int, folder: Path) -> Heldout: ...
    def fingerprint(self) -> str:
        """Changes with the training data and its order."""
        ...


def open_feed(configs: Sequence[RunConfig]) -> Feed:
    """Open what feeds the runs, which share `RunConfig.pass_key`; raises `UserError`."""
    return FileFeed(configs[0]) if configs[0].data.activations else TextFeed(configs)


class TextFeed:
    """The language model reads text and is listened to at the runs' hook points."""

    def __init__(self, configs: Sequence[RunConfig]) -> None:
        first, *others = (config.model for config in configs)
        self._data = configs[0].data
        self.model = LanguageModel.load(first, also=others, ctx_len=self._data.ctx_len)
        self.device, self.notices = self.model.device, self.model.notices
        self._packing = Packing(
            self.model.tokenizer, self._data.ctx_len, self.model.bos_id, self.model.eos_id
        )

    def hook_of(self, config: RunConfig) -> int:
        return self.model.hook_of(config.model)

    def d_in(self, hook: int) -> int:
        return self.model.hooks[hook].d_in

    def hook_name(self, hook: int) -> str:
        return self.model.hooks[hook].name

    def count_tokens(self) -> int:
        return count_tokens(self._data, self._packing)

    def open_source(
        self,
        cursor: Cursor,
        check_stop: CheckStop = lambda: None,
        time_call: TimeCall = nullcontext,
    ) -> TextSource:
        rows = training_rows(self._data, self._packing, cursor=cursor)
        return TextSource(self.model, rows, check_stop, time_call)

    def open_heldout(self, num_tokens: int, folder: Path) -> HeldoutText:
        spare = num_tokens // 50  # for the positions that do not count
        ids = heldout_rows(self._data, self._packing, num_tokens + spare)
        return HeldoutText(self.model, ids, num_tokens, folder)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._packing.tokenizer.to_str().encode())
        digest.update(training_rows(self._data, self._packing).take(4).tobytes())
        same = self._data.model_dump(
            mode="json",
            include={"dataset", "subset", "split", "text_column", "ctx_len", "seed", "num_samples"},
        )
        digest.update(json.dumps(same, sort_keys=True).encode())
        return digest.hexdigest()


class FileFeed:
    """Activation files, made before; the language model is needed only to show features."""

    def __init__(self, config: RunConfig) -> None:
        assert config.data.activations is not None
        self._config = config
        self._files = open_set(config.data.activations)
        self.device = resolve_device(config.model)
        self.notices: list[str] = []
        self._model: LanguageModel | None = None

    @property
    def model(self) -> LanguageModel | None:
        if self._model is None and self._files.has_tokens:
            self._model = LanguageModel.load(self._config.model)
        return self._model

    def hook_of(self, config: RunConfig) -> int:
        return 0

    def d_in(self, hook: int) -> int:
        return self._files.d_in

    def hook_name(self, hook: int) -> str:
        return self._files.origin.hook_name

    def count_tokens(self) -> int:
        return self._files.num_train_tokens

    def open_source(
        self,
        cursor: Cursor,
        check_stop: CheckStop = lambda: None,
        time_call: TimeCall = nullcontext,
    ) -> FileSource:
        return FileSource(self._files, cursor, self.device, check_stop)

    def open_heldout(self, num_tokens: int, folder: Path) -> HeldoutFiles:
        return HeldoutFiles(self._files, num_tokens)

    def fingerprint(self) -> str:
        files = [(part.path.name, part.first, part.last) for part in self._files.train]
        described = json.dumps([files, self._files.d_in, self._config.data.seed])
        return hashlib.sha256(described.encode()).hexdigest()


def save_activations(
    config: RunConfig, folder: Path, check_stop: CheckStop = lambda: None
) -> Iterator[AnyRecord]:
    """Write the activations that a run of `config` trains on, and its held-out ones, as files.

    A run with `data.activations` naming the folder then equals one that reads the text. Yields
    phases and notices; raises `UserError` for a folder that is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"'{folder}' is not empty; name a new folder for the activations.")
    yield PhaseRecord(phase="loading the language model")
    feed = TextFeed([config])
    origin = Origin(config.model.name, feed.hook_name(0), config.data.ctx_len, config.data.dataset)
    wanted = config.train.total_tokens
    if config.train.num_epochs is not None:
        wanted = config.train.num_epochs * feed.count_tokens()
    if wanted is None:
        raise ConfigError.of("train.total_tokens", "Give train.total_tokens or train.num_epochs.")
    yield PhaseRecord(phase="saving held-out activations")
    num_heldout = max(config.data.heldout_tokens, config.index.tokens)
    heldout = feed.open_heldout(num_heldout, folder / ".heldout")
    try:
        write_part(
            folder / "heldout-00000.safetensors",
            heldout.first(0, num_heldout, check_stop),
            heldout.token_ids,
            heldout.row_starts,
            origin,
        )
    finally:
        heldout.close()
    source = feed.open_source(Cursor(), check_stop)
    saved, number, last_block = 0, 0, 0
    while saved - last_block // 2 < wanted:  # the last block's later half is never given out
        values: list[torch.Tensor] = []
        ids: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        size = 0
        while size < TOKENS_PER_FILE and saved + size - last_block // 2 < wanted:
            values += source.next_block()
            ordinary = ~np.isin(source.last_ids, feed.model.excluded_ids)
            ids.append(source.last_ids[ordinary])
            lengths.append(ordinary.sum(axis=1))
            last_block = len(values[-1])
            size += last_block
        starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        path = folder / f"train-{number:05d}.safetensors"
        write_part(path, torch.cat(values), np.concatenate(ids), starts, origin)
        saved, number = saved + size, number + 1
        yield PhaseRecord(phase=f"saving activations: {min(saved, wanted):,} of {wanted:,} tokens")
    yield NoticeRecord(
        level="info",
        message=f"{saved:,} training and {heldout.num_tokens:,} held-out activations are in "
        f"'{folder}'; train on them with --load-activations {folder}.",
    )
