"""Whether a file or folder holds enough text for a run, before the run reads it. No torch.

Called by `preflight`.
"""

from __future__ import annotations

from sae_engine.errors import ConfigError
from sae_engine.schema.config import DataConfig
from sae_engine.text.paths import COMPRESSED, dataset_files, is_local_dataset
from sae_engine.text.sources import documents

SEARCHED_BYTES = 2**26
"""Only in this much text are both parts looked for: in more, both are nearly certain."""
BYTES_PER_TOKEN = 4
"""A usual figure, for a forecast."""
FEW_EPOCHS = 3
_PACKED = (".parquet", ".arrow", *COMPRESSED)


def require_both_parts(config: DataConfig) -> None:
    """Raise `ConfigError` if a hash puts all documents of a text into one of its two parts, or
    none, so that nothing is left to train on or to hold out.
    """
    size = _size(config)
    if size is None or size > SEARCHED_BYTES:
        return
    training, held_out = (
        next(documents(config, split), None) is not None for split in ("train", "heldout")
    )
    if training and held_out:
        return
    number = sum(1 for split in ("train", "heldout") for _ in documents(config, split))
    what = "only one document" if number == 1 else f"{number:,} documents"
    lacks = "hold out" if training else "train on"
    raise ConfigError.of(
        "data.dataset",
        f"'{config.dataset}' has {what}, and a tenth of the documents, chosen by a hash of their "
        f"text, is held out: none is left to {lacks}. Separate documents by blank lines, set "
        "data.documents, or use more text.",
    )


def repetition(config: DataConfig, num_tokens: int) -> str | None:
    """A sentence if `num_tokens` read a small text many times, going by the size of its files."""
    size = _size(config)
    if size is None:
        return None
    held = max(1, size // BYTES_PER_TOKEN)
    epochs = num_tokens / held
    if epochs <= FEW_EPOCHS:
        return None
    return (
        f"'{config.dataset}' holds about {held:,} tokens ({size:,} bytes), so {num_tokens:,} "
        f"training tokens read it about {epochs:,.0f} times; lower train.total_tokens or use more "
        "text."
    )


def _size(config: DataConfig) -> int | None:
    """Bytes of text in a local dataset; None for others, and for compressed ones."""
    if config.messages_column is not None or not is_local_dataset(config.dataset):
        return None
    paths = dataset_files(config).paths
    if any(path.suffix.lower() in _PACKED for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)
