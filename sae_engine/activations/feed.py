"""What feeds a pass: the language model reading text, or activation files.

Opened by `training` for all the runs that share the pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from sae_engine.activations.files import (
    FileSource,
    HeldoutFiles,
    open_activation_set,
    require_token_ids,
)
from sae_engine.activations.heldout import Heldout, HeldoutText
from sae_engine.activations.readers import Reader, SharedReading, reader_devices
from sae_engine.activations.stream import (
    ActivationSource,
    ModelSource,
    SourceCursor,
    TimeCall,
    rows_per_block,
)
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.model.language_model import LanguageModel
from sae_engine.model.loading import resolve_device, vocab_size
from sae_engine.progress import Part, result_of
from sae_engine.schema.config import Division, RunConfig
from sae_engine.schema.records import NoticeRecord
from sae_engine.text.chat import ChatTemplate
from sae_engine.text.notices import TextNotices
from sae_engine.text.order import read_mixed_heldout, shuffled_rows
from sae_engine.text.overlap import TextOverlap
from sae_engine.text.packing import Cursor, Packing, count_tokens, training_rows
from sae_engine.text.sources import open_text_source

TextSource = ModelSource | SharedReading


class Contents(NamedTuple):
    """What a dataset, or a set of activation files, is recognized by."""

    name: str
    hash: str
    """Empty if it is not known."""


class Feed(Protocol):
    """Where the activations of a pass come from."""

    device: torch.device
    overlap: TextOverlap | None
    """Of the held-out text and the training text read so far; None before `opening_heldout`, and if
    the training text is not known.
    """

    @property
    def notices(self) -> list[str]:
        """Warnings about it for the user; reading the text can add some."""
        ...

    def hook_of(self, config: RunConfig) -> int:
        """The index of a run's activations among those of a block."""
        ...

    def d_in(self, hook: int) -> int: ...
    def hook_name(self, hook: int) -> str: ...

    @property
    def prepends_bos(self) -> bool:
        """Whether every row starts with BOS; that of activation files is not known."""
        ...

    @property
    def num_readers(self) -> int | None:
        """Processes that run the language model, this one included; None if none does."""
        ...

    @property
    def division(self) -> Division | None:
        """How the text is divided into documents, if known."""
        ...

    @property
    def num_train_tokens(self) -> int:
        """Training tokens in one epoch, counted at the first use."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of what determines the order of the training data: settings, tokenizer and the
        first rows of text, or the names and lengths of activation files.
        """
        ...

    @property
    def contents(self) -> Sequence[Contents]:
        """What each dataset is recognized by when a run resumes."""
        ...

    def load_model(self, check_stop: CheckStop = never_stop) -> LanguageModel | None:
        """The language model whose activations these are; None if their text is not known."""
        ...

    def open_source(
        self, cursor: SourceCursor, check_stop: CheckStop, time_call: TimeCall = nullcontext
    ) -> ActivationSource: ...
    def opening_heldout(
        self, num_tokens: int, folder: Path, check_stop: CheckStop, num_stored: int
    ) -> Generator[Part, None, Heldout]:
        """Read held-out text, of which the activations of `num_stored` tokens will be stored."""
        ...

    def close(self) -> None:
        """End the processes that a source uses."""
        ...


def open_feed(configs: Sequence[RunConfig], check_stop: CheckStop = never_stop) -> Feed:
    """Open what feeds the runs, which share `RunConfig.pass_key`; raises `UserError`.

    `check_stop` is called while opening and during the work that is done once for all runs.
    """
    if configs[0].data.activations:
        return FileFeed(configs, check_stop)
    return TextFeed(configs, check_stop)


def new_notices(feed: Feed, reported: set[str]) -> list[NoticeRecord]:
    """Notices of the feed that are not in `reported`, to which they are added."""
    new = [notice for notice in feed.notices if notice not in reported]
    reported.update(new)
    return [NoticeRecord(level="warning", message=notice) for notice in new]


class TextFeed:
    """The language model reads text, and its activations are taken at the runs' hook points."""

    def __init__(self, configs: Sequence[RunConfig], check_stop: CheckStop = never_stop) -> None:
        first, *others = self._models = [config.model for config in configs]
        self._data = configs[0].data
        self._check_stop = check_stop
        self.model = LanguageModel.load(
            first, also=others, ctx_len=self._data.ctx_len, check_stop=check_stop
        )
        self.device = self.model.device
        self._reader_devices = reader_devices(first, self.device)
        self._readers: list[Reader] = []
        self.overlap: TextOverlap | None = None
        self._text_notices = TextNotices()
        self._packing = Packing(
            self.model.tokenizer,
            self._data.ctx_len,
            self.model.bos_id,
            self.model.eos_id,
            self._text_notices,
            self._chat_template(),
        )

    def _chat_template(self) -> ChatTemplate | None:
        if not any(data.messages_column for data in self._data.datasets):
            return None
        name, tokenizer = self.model.config.name, self.model.hf_tokenizer
        return ChatTemplate(tokenizer, name, self.model.vocab_size, self._data.train_roles)

    @property
    def notices(self) -> list[str]:
        return [*self.model.notices, *self._text_notices.sentences]

    def hook_of(self, config: RunConfig) -> int:
        return self.model.hook_of(config.model)

    def d_in(self, hook: int) -> int:
        return self.model.hooks[hook].d_in

    def hook_name(self, hook: int) -> str:
        return self.model.hooks[hook].name

    @property
    def prepends_bos(self) -> bool:
        return self.model.bos_id is not None

    @property
    def num_readers(self) -> int:
        return 1 + len(self._reader_devices)

    @property
    def division(self) -> Division | None:
        if self._data.mixture is not None:
            return None
        return open_text_source(self._data, self._text_notices).division()

    # Type checkers do not accept a `cached_property` for a property of a protocol.
    @property
    def num_train_tokens(self) -> int:
        return self._num_train_tokens

    @cached_property
    def _num_train_tokens(self) -> int:
        excluded = self.model.excluded_ids
        return count_tokens(self._data, self._packing, excluded, self._check_stop)

    @property
    def contents(self) -> Sequence[Contents]:
        return self._contents

    @cached_property
    def _contents(self) -> Sequence[Contents]:
        return [
            Contents(data.dataset, open_text_source(data, self._text_notices).contents())
            for data in self._data.datasets
        ]

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self._packing.tokenizer.to_str().encode())
        for data in self._data.datasets:
            rows = training_rows(data, self._packing, check_stop=self._check_stop)
            digest.update(rows.take(4).tobytes())
        same = self._data.model_dump(
            mode="json",
            include={"dataset", "subset", "split", "text_column", "ctx_len", "seed", "num_samples"},
        )
        if self._data.documents is not None:
            same["documents"] = self._data.documents
        if self._data.mixture is not None:
            same["mixture"] = self._data.model_dump(mode="json", include={"mixture"})
        if self._pool_rows > 1:
            same["pool_rows"] = self._pool_rows
        if self._packing.chat is not None:
            same |= self._data.model_dump(mode="json", include={"messages_column", "train_roles"})
            same["chat_template"] = self._packing.chat.text
        digest.update(json.dumps(same, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def _pool_rows(self) -> int:
        """Rows of text that are shuffled together; 1 if no more than a block, which is shuffled
        anyway.
        """
        rows = self._data.shuffle_tokens // self._data.ctx_len
        return rows if rows > rows_per_block(self._data.ctx_len) else 1

    def load_model(self, check_stop: CheckStop = never_stop) -> LanguageModel:
        return self.model

    def open_source(
        self,
        cursor: SourceCursor,
        check_stop: CheckStop = never_stop,
        time_call: TimeCall = nullcontext,
    ) -> TextSource:
        rows = shuffled_rows(
            self._data, self._packing, cursor, pool_rows=self._pool_rows, check_stop=check_stop
        )
        source = ModelSource(self.model, rows, check_stop, time_call, self.overlap)
        if not self._reader_devices:
            return source
        self.close()
        self._readers = [
            Reader(self._models, self._data.ctx_len, device) for device in self._reader_devices
        ]
        return SharedReading(source, self._readers, self.device, check_stop, time_call)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self._readers = []

    def open_heldout(
        self, num_tokens: int, folder: Path, check_stop: CheckStop = never_stop
    ) -> HeldoutText:
        """Held-out text of which all activations will be stored."""
        return result_of(self.opening_heldout(num_tokens, folder, check_stop))

    def opening_heldout(
        self,
        num_tokens: int,
        folder: Path,
        check_stop: CheckStop = never_stop,
        num_stored: int | None = None,
    ) -> Generator[Part, None, HeldoutText]:
        excluded = self.model.excluded_ids
        rows = yield from read_mixed_heldout(
            self._data, self._packing, num_tokens, excluded, check_stop
        )
        heldout = HeldoutText(self.model, rows, num_tokens, folder, num_stored)
        self.overlap = TextOverlap(heldout.ids, heldout.at)
        return heldout


class FileFeed:
    """Activation files; the language model is loaded only to build features."""

    def __init__(self, configs: Sequence[RunConfig], check_stop: CheckStop = never_stop) -> None:
        config = self._config = configs[0]
        assert config.data.activations is not None
        self._files = open_activation_set(config.data.activations)
        if self._files.has_tokens:
            require_token_ids(self._files, vocab_size(config.model, check_stop))
        self.device = resolve_device(config.model)
        self.overlap: TextOverlap | None = None
        self._model: LanguageModel | None = None
        self._repetition = _repetition(configs, self.num_train_tokens)

    @property
    def notices(self) -> list[str]:
        return [*self._repetition, *([] if self._model is None else self._model.notices)]

    def hook_of(self, config: RunConfig) -> int:
        return 0

    def d_in(self, hook: int) -> int:
        return self._files.d_in

    def hook_name(self, hook: int) -> str:
        return self._files.metadata.hook_name

    @property
    def prepends_bos(self) -> bool:
        return True

    @property
    def num_readers(self) -> None:
        return None

    @property
    def division(self) -> None:
        return None

    @property
    def num_train_tokens(self) -> int:
        return self._files.num_train_tokens

    @property
    def fingerprint(self) -> str:
        files = [(part.path.name, part.first, part.last) for part in self._files.train]
        described = json.dumps([files, self._files.d_in, self._config.data.seed])
        return hashlib.sha256(described.encode()).hexdigest()

    @property
    def contents(self) -> Sequence[Contents]:
        return self._contents

    @cached_property
    def _contents(self) -> Sequence[Contents]:
        return [Contents(str(self._config.data.activations), self._files.contents())]

    def load_model(self, check_stop: CheckStop = never_stop) -> LanguageModel | None:
        if self._model is None and self._files.has_tokens:
            self._model = LanguageModel.load(self._config.model, check_stop=check_stop)
        return self._model

    def open_source(
        self,
        cursor: SourceCursor,
        check_stop: CheckStop = never_stop,
        time_call: TimeCall = nullcontext,
    ) -> FileSource:
        assert isinstance(cursor, Cursor)
        return FileSource(self._files, cursor, self.device, check_stop)

    def opening_heldout(
        self, num_tokens: int, folder: Path, check_stop: CheckStop, num_stored: int
    ) -> Generator[Part, None, HeldoutFiles]:
        yield Part(0, num_tokens, "tokens")
        return HeldoutFiles(self._files, num_tokens, check_stop, num_stored)

    def close(self) -> None: ...


def _repetition(configs: Sequence[RunConfig], num_tokens: int) -> list[str]:
    """A sentence if training asks for more than the files' `num_tokens` without saying so."""
    most = max(0 if c.sae.pretrained else c.train.total_tokens or 0 for c in configs)
    if most <= num_tokens:
        return []
    return [
        f"The activation files hold {num_tokens:,} training tokens, fewer than the {most:,} of "
        "train.total_tokens, so training reads them more than once."
    ]
