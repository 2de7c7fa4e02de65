"""Where text comes from: the embedded corpus, local files, or a dataset of the Hugging Face hub.

Every source is a sequence of numbered documents in a fixed order, of which a part is held out. Read
by `corpus` and, for what can be known without reading it all, by `preflight`. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_engine.errors import ConfigError, UserError
from sae_engine.schema.config import DataConfig
from sae_engine.text.stdlib import Split, stdlib_documents

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo

EMBEDDED_CORPUS = "python-stdlib"
TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
HELDOUT_PERCENT = 10
"""Share of the documents that is never trained on (the embedded corpus has its own split, by
file).
"""
MAX_RETRIES = 5
HUB_TIMEOUT_SECONDS = 5
CONVERTED = "refs/convert/parquet"
"""The revision in which the hub keeps a dataset that it has converted to Parquet."""

_log = logging.getLogger(__name__)


class Document(NamedTuple):
    number: int
    """Place in its source, counted over both splits."""
    text: str


def documents(config: DataConfig, split: Split, start: int = 0) -> Iterator[Document]:
    """The documents of one split whose number is at least `start`, in the source's order.

    A document is held out by a hash of its text, so that two equal documents are always in the same
    split. Raises `UserError` for a source that cannot be read.
    """
    if config.dataset == EMBEDDED_CORPUS:
        wanted = (Document(n, text) for n, text in enumerate(stdlib_documents(split)))
    else:
        numbered = _local(config) if is_local_dataset(config) else _hub(config, start)
        wanted = (d for d in numbered if _is_heldout(d.text) == (split == "heldout"))
    limit = config.num_samples
    for document in wanted:
        if limit is not None and document.number >= limit:
            return
        if document.number >= start and document.text.strip():
            yield document


def _is_heldout(text: str) -> bool:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") * 100 < HELDOUT_PERCENT * 2**32


def _local(config: DataConfig) -> Iterator[Document]:
    texts = (t for path in dataset_files(config) for t in local_documents(path, config.text_column))
    return (Document(number, text) for number, text in enumerate(texts))


def _hub(config: DataConfig, start: int) -> Iterator[Document]:
    """Read from the hub; a dropped connection is taken up again where it broke, a few times.

    Raises `UserError` for a dataset that cannot be had or is not as it should be.
    """
    info = _ask_hub(config)
    where = _conversion(config) if _is_script(config, info) else {"name": config.subset}
    number, failures = start, 0
    while True:
        try:
            rows = _open_hub(config, where)
            for row in rows.skip(number) if number else rows:
                yield Document(number, _text(row[config.text_column], config.text_column))
                number, failures = number + 1, 0
            return
        except UserError:
            raise
        except ValueError as error:  # Arrow's, among others
            raise UserError(
                f"'{config.dataset}' cannot be read at document {number:,}: {error}"
            ) from error
        except Exception as error:
            if not is_connection_error(error):
                raise
            if info is None:
                raise _unreachable(config) from error
            failures += 1
            if failures > MAX_RETRIES:
                raise UserError(
                    f"'{config.dataset}' stopped answering at document {number:,} and did not come "
                    f"back after {MAX_RETRIES} tries: {error}"
                ) from error
            _log.warning(
                "reading %s failed at document %d, trying again: %s", config.dataset, number, error
            )
            time.sleep(min(2**failures, 30))


def _ask_hub(config: DataConfig) -> DatasetInfo | None:
    """What the hub says about a dataset; None if it is not asked or does not answer.

    One question, as the downloader would try an unreachable hub for long. A dataset that is not
    streamed may be in the cache.
    """
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import RepositoryNotFoundError

    if is_offline_mode():
        return None
    try:
        return HfApi().dataset_info(config.dataset, timeout=HUB_TIMEOUT_SECONDS)
    except RepositoryNotFoundError as error:
        raise _no_dataset(config) from error
    except Exception as error:
        if not is_connection_error(error):
            raise
        if config.streaming:
            raise _unreachable(config) from error
        return None


def _unreachable(config: DataConfig) -> UserError:
    return UserError(
        f"The dataset '{config.dataset}' cannot be reached: check the network, or use a local file "
        f"or the embedded '{EMBEDDED_CORPUS}'."
    )


def _no_dataset(config: DataConfig) -> UserError:
    return UserError(
        f"There is no dataset '{config.dataset}' on the Hugging Face hub (or it is private and "
        "HF_TOKEN is not set)."
    )


def is_connection_error(error: BaseException) -> bool:
    """Whether the network is to blame.

    The hub's library speaks through httpx or httpx2, whichever is installed; each has a
    `TransportError` of its own.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or "TransportError" in names


def _open_hub(config: DataConfig, where: dict[str, Any]) -> Any:
    """Raises `UserError` for a dataset that cannot be had, connection errors as they come."""
    from datasets import load_dataset
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        rows = load_dataset(config.dataset, **where, split=config.split, streaming=config.streaming)
    except DatasetNotFoundError as error:
        if "gated" not in str(error):
            raise _no_dataset(config) from error
        raise UserError(
            f"'{config.dataset}' is gated: accept its terms on its Hugging Face page and set "
            "HF_TOKEN to a token of that account."
        ) from error
    except (ValueError, DatasetsError, EmptyDatasetError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise UserError(
            f"The dataset '{config.dataset}' could not be opened: {error}{cause}"
        ) from error
    columns = rows.column_names or list(next(iter(rows), {}))
    if not columns:
        raise UserError(f"The split '{config.split}' of '{config.dataset}' is empty.")
    if config.text_column not in columns:
        raise _no_column(config.text_column, f"'{config.dataset}'", ", ".join(columns))
    return rows


def _is_script(config: DataConfig, info: DatasetInfo | None) -> bool:
    """Whether a dataset is made by a script of its own, which `datasets` no longer runs."""
    script = f"{config.dataset.rpartition('/')[2]}.py"
    return info is not None and any(file.rfilename == script for file in info.siblings or [])


def _conversion(config: DataConfig) -> dict[str, Any]:
    """Where the hub's own conversion of a script to Parquet is, as `load_dataset` wants it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        files = HfApi().list_repo_files(config.dataset, repo_type="dataset", revision=CONVERTED)
    except RevisionNotFoundError as error:
        raise UserError(
            f"'{config.dataset}' is a script, which is not run, and the hub has no conversion of "
            "it to Parquet; use another dataset or a local file."
        ) from error
    subsets = sorted({file.split("/")[0] for file in files if file.endswith(".parquet")})
    subset = config.subset or (subsets[0] if len(subsets) == 1 else None)
    if subset not in subsets:
        raise ConfigError.of(
            "data.subset", f"'{config.dataset}' has these: {', '.join(subsets)}; name one of them."
        )
    _log.info("%s is a script; reading the hub's conversion to Parquet instead", config.dataset)
    return {"data_dir": subset, "revision": CONVERTED}


def is_local_dataset(config: DataConfig) -> bool:
    """Whether the dataset is a path, by its suffix or because it begins like one."""
    return config.dataset.endswith(TEXT_SUFFIXES) or config.dataset.startswith(
        ("/", "./", "../", "~")
    )


def dataset_files(config: DataConfig) -> list[Path]:
    """The local files of a dataset: the file itself, or a folder's text files in order of their
    names.

    Raises `ConfigError` when there is nothing to read.
    """
    path = Path(config.dataset).expanduser()
    if path.is_file() and path.suffix in TEXT_SUFFIXES:
        return [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES and p.is_file())
        if files:
            return files
        raise ConfigError.of(
            "data.dataset", f"The folder '{path}' holds no .txt, .jsonl or .parquet file."
        )
    if not path.exists():
        raise ConfigError.of("data.dataset", f"There is no file or folder '{path}'.")
    raise ConfigError.of(
        "data.dataset", f"'{path}' is neither .txt, .jsonl nor .parquet; convert it to one of them."
    )


def local_documents(path: Path, column: str) -> Iterator[str]:
    """The documents of one file: paragraphs of a .txt, rows of a .jsonl or .parquet.

    Raises `ConfigError` for a missing column and for a line that is not JSON, named by its number.
    """
    if path.suffix == ".txt":
        yield from _paragraphs(path)
    elif path.suffix == ".jsonl":
        yield from _json_lines(path, column)
    else:
        yield from _parquet_rows(path, column)


def _paragraphs(path: Path) -> Iterator[str]:
    paragraph: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph)
                paragraph = []
    if paragraph:
        yield "".join(paragraph)


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError.of(
                    "data.dataset", f"Line {number} of '{path}' is not JSON: {error.msg}."
                ) from None
            if not isinstance(row, dict) or column not in row:
                names = (
                    ", ".join(map(str, row))
                    if isinstance(row, dict)
                    else "none, as it is not an object"
                )
                raise _no_column(column, f"line {number} of '{path}'", names)
            yield _text(row[column], column)


def _parquet_rows(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        file = parquet.ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise ConfigError.of(
            "data.dataset", f"'{path}' cannot be read as Parquet: {error}."
        ) from None
    if column not in file.schema_arrow.names:
        raise _no_column(column, f"'{path}'", ", ".join(file.schema_arrow.names))
    for batch in file.iter_batches(batch_size=256, columns=[column]):
        for value in batch.column(0).to_pylist():
            yield _text(value, column)


def _no_column(column: str, where: str, names: str) -> ConfigError:
    return ConfigError.of(
        "data.text_column", f"There is no column '{column}' in {where}; its columns are: {names}."
    )


def _text(value: object, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError.of(
            "data.text_column", f"Column '{column}' holds {type(value).__name__}, not text."
        )
    return value
