"""Activations written to files, to be trained on many times.

Called by the command line and notebooks; the files are read by `files`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from sae_engine.activations.feed import TextFeed, TextSource, new_notices
from sae_engine.activations.files import FileMetadata, write_activation_file
from sae_engine.activations.stream import rows_per_block
from sae_engine.errors import ConfigError, UserError
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.preflight import UNFINISHED
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, NoticeRecord, PhaseRecord
from sae_engine.sizes import num_heldout
from sae_engine.text.packing import Cursor

TOKENS_PER_FILE = 2**18


def save_activations(
    config: RunConfig, folder: Path, check_stop: CheckStop = never_stop
) -> Generator[AnyRecord]:
    """Write the training and held-out activations of a run of `config` to files in `folder`.

    A run with `data.activations` naming the folder then equals one that reads the text. Yields
    phases and notices; raises `UserError` for a folder that is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"'{folder}' is not empty; name a new folder for the activations.")
    yield PhaseRecord(phase="loading the language model")
    feed = TextFeed([config], check_stop)
    reported: set[str] = set()
    yield from new_notices(feed, reported)
    metadata = FileMetadata(
        config.model.name, feed.hook_name(0), config.data.ctx_len, config.data.title
    )
    wanted = config.train.total_tokens
    if config.train.num_epochs is not None:
        wanted = config.train.num_epochs * feed.num_train_tokens
    if wanted is None:
        raise ConfigError.of("train.total_tokens", "Give train.total_tokens or train.num_epochs.")
    unfinished = folder / UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    unfinished.write_text("These activations are still being saved, or saving was interrupted.\n")
    yield PhaseRecord(phase="saving held-out activations")
    num_tokens = num_heldout(config)
    heldout = feed.open_heldout(num_tokens, folder / ".heldout", check_stop)
    try:
        write_activation_file(
            folder / "heldout-00000.safetensors",
            heldout.read(0, num_tokens, check_stop),
            heldout.token_ids,
            heldout.row_starts,
            metadata,
            heldout.text_breaks,
        )
    finally:
        heldout.close()
    yield from new_notices(feed, reported)
    source = feed.open_source(Cursor(), check_stop)
    saved, number, last_block = 0, 0, 0
    with closing(feed):
        while saved - last_block // 2 < wanted:  # the last block's later half is never given out
            path = folder / f"train-{number:05d}.safetensors"
            size, last_block = _save_blocks(path, source, wanted - saved, metadata)
            saved, number = saved + size, number + 1
            yield PhaseRecord(
                phase="saving activations", done=min(saved, wanted), total=wanted, unit="tokens"
            )
    unfinished.unlink()
    yield from new_notices(feed, reported)
    yield NoticeRecord(
        level="info",
        message=f"{saved:,} training and {heldout.num_tokens:,} held-out activations are in "
        f"'{folder}'; train on them with --load-activations {folder}.",
    )


def _save_blocks(
    path: Path, source: TextSource, wanted: int, metadata: FileMetadata
) -> tuple[int, int]:
    """Write blocks to one file until it is full or training can take `wanted` tokens from it.

    Returns the number of tokens written, and how many are in the last block.
    """
    values: list[torch.Tensor] = []
    ids: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    size, last_block = 0, 0
    while not values or (size < TOKENS_PER_FILE and size - last_block // 2 < wanted):
        values += source.next_block()
        text = source.last
        ids.append(text.ids[text.at])
        # A block of more rows, many of them context, is written as one of the usual number.
        num_rows = rows_per_block(text.ids.shape[1])
        lengths.append(text.at.reshape(num_rows, -1).sum(axis=1))
        last_block = len(values[-1])
        size += last_block
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    write_activation_file(path, torch.cat(values), np.concatenate(ids), starts, metadata)
    return size, last_block
