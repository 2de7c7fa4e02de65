"""Where text comes from: the embedded corpus, local files, or a dataset of the Hugging Face hub.

Each kind is a class that provides a `TextSource`; `open_text_source` chooses one by
`data.dataset`. Read by `packing`, and by `preflight` before a run starts. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from sae_engine.errors import ConfigError
from sae_engine.schema.config import DataConfig, Division
from sae_engine.text.documents import Document, Split
from sae_engine.text.hub_dataset import HubDataset
from sae_engine.text.local_files import LocalFiles
from sae_engine.text.notices import TextNotices
from sae_engine.text.paths import is_local_dataset
from sae_engine.text.stdlib import EMBEDDED_CORPUS, EmbeddedCorpus

if TYPE_CHECKING:
    from sae_engine.text.chat import ChatTemplate


class TextSource(Protocol):
    """Numbered documents in a fixed order, part of them held out."""

    @property
    def is_unbounded(self) -> bool:
        """Whether its length is unknown, so that its tokens cannot be counted."""
        ...

    def check(self) -> None:
        """Raise `ConfigError` for problems that can be found in a bounded part of the text,
        without the network.
        """
        ...

    def require(self) -> None:
        """Raise `UserError` if the hub is asked for the text and cannot give it; one request."""
        ...

    def division(self) -> Division | None:
        """How plain text is divided into documents; None for rows, or if files differ.

        Raises `ConfigError`.
        """
        ...

    def contents(self) -> str:
        """A hash that differs if the text has changed, going by a bounded part of it; "" if that
        cannot be known. Raises `ConfigError`.
        """
        ...

    def documents(self, split: Split, start: int) -> Iterator[Document]:
        """A split's documents in order; those before number `start` may be left out.

        Raises `UserError` for a source that cannot be read.
        """
        ...


def open_text_source(
    config: DataConfig, notices: TextNotices | None = None, chat: ChatTemplate | None = None
) -> TextSource:
    """The source of a run's text; what the user should know of it is added to `notices`.

    Conversations that `chat` refuses are left out. Raises `ConfigError` for a source without any.
    """
    notices = notices or TextNotices()
    if config.dataset == EMBEDDED_CORPUS:
        if config.messages_column is not None:
            raise ConfigError.of(
                "data.messages_column",
                f"'{EMBEDDED_CORPUS}' holds no conversations; set data.dataset to one that does.",
            )
        return EmbeddedCorpus()
    if is_local_dataset(config.dataset):
        return LocalFiles(config, notices, chat)
    return HubDataset(config, notices, chat)


def documents(
    config: DataConfig,
    split: Split,
    start: int = 0,
    notices: TextNotices | None = None,
    chat: ChatTemplate | None = None,
) -> Iterator[Document]:
    """A split's documents that are not blank, from number `start` up to `data.num_samples`."""
    limit = config.num_samples
    for document in open_text_source(config, notices, chat).documents(split, start):
        if limit is not None and document.number >= limit:
            return
        if document.number >= start and document.text.strip():
            yield document
