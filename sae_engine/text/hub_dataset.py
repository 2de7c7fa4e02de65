"""Text from a dataset of the Hugging Face hub, streamed or downloaded by the `datasets` library.

Calls here can block for minutes; `packing` makes them in a background thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sae_engine import hub
from sae_engine.errors import ConfigError, UserError, cause_of
from sae_engine.schema.config import DataConfig
from sae_engine.text.columns import texts_of
from sae_engine.text.documents import Document, Split, split_by_hash
from sae_engine.text.notices import TextNotices
from sae_engine.text.rows import Row, column_of, no_column, usable_texts
from sae_engine.text.stdlib import EMBEDDED_CORPUS

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo

    from sae_engine.text.chat import ChatTemplate

MAX_RETRIES = 5
CONVERTED = "refs/convert/parquet"
"""The revision in which the hub keeps a dataset that it has converted to Parquet."""
REMEDY = f"use another dataset, a local file or the embedded '{EMBEDDED_CORPUS}'"
_FILE_READERS = {
    *("csv", "json", "pandas", "parquet", "arrow", "text", "conll", "imagefolder", "audiofolder"),
    *("videofolder", "meshfolder", "pdffolder", "niftifolder", "webdataset", "xml", "hdf5", "eval"),
    *("lance", "tsfile", "iceberg", "vortex", "mmcif", "pdb", "genbank", "fasta", "fastq"),
    *("harbor", "sql", "generator", "spark", "packaged"),
}
"""Names that the datasets library takes for readers of the files in the working directory."""
_WITHOUT_TEXT = {"README.md", ".gitattributes"}
_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)

_log = logging.getLogger(__name__)


class HubDataset:
    """A dataset's rows in order, from any row on; dropped connections are resumed."""

    def __init__(
        self, config: DataConfig, notices: TextNotices, chat: ChatTemplate | None = None
    ) -> None:
        self._config = config
        self._notices = notices
        self._chat = chat
        self._name = config.dataset
        self.is_unbounded = config.streaming and config.num_samples is None

    def check(self) -> None:
        """Without the network, only the name can be checked."""
        if self._name.lower() in _FILE_READERS:
            raise ConfigError.of(
                "data.dataset",
                f"'{self._name}' is a file type, not a dataset; give the path of the file or "
                "folder to read.",
            )
        if not _HUB_ID.fullmatch(self._name):
            raise ConfigError.of(
                "data.dataset",
                f"'{self._name}' is neither a dataset of the hub, such as user/name, nor a file or "
                "folder that exists.",
            )

    def require(self) -> None:
        """Raise `UserError` if the hub has no such dataset or, when it is streamed, does not
        answer.
        """
        self._ask_hub()

    def division(self) -> None:
        return None

    def contents(self) -> str:
        """From the hub's hashes of the files; a new card changes no text."""
        from huggingface_hub import HfApi, is_offline_mode

        if is_offline_mode():
            return ""
        try:
            info = HfApi().dataset_info(
                self._name, timeout=hub.TIMEOUT_SECONDS, files_metadata=True
            )
        except Exception:  # reported where the text is read
            return ""
        hashes = {file.rfilename: file.blob_id for file in info.siblings or []}
        hashes = {name: id_ for name, id_ in hashes.items() if name not in _WITHOUT_TEXT}
        if not all(hashes.values()):
            return ""
        return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()

    def documents(self, split: Split, start: int) -> Iterator[Document]:
        self.check()
        texts = usable_texts(
            self._rows(start),
            self._config,
            self._name,
            "row",
            self._notices,
            chat=self._chat,
            from_start=start == 0,
        )
        return split_by_hash((Document(start + n, text) for n, text in enumerate(texts)), split)

    def _rows(self, start: int) -> Iterator[Row]:
        """All rows from number `start` on. Raises `UserError` for a dataset that is missing,
        refused, damaged, or unreachable for `MAX_RETRIES` tries in a row.
        """
        info = self._ask_hub()
        location = self._conversion() if self._is_script(info) else {"name": self._config.subset}
        number, failures, column = start, 0, column_of(self._config).name
        while True:
            try:
                # As Arrow, because a Python string could not hold bytes that are not UTF-8.
                rows = self._open(location).with_format("arrow")
                for row in rows.skip(number) if number else rows:
                    [value] = texts_of(row.column(column).combine_chunks())
                    yield Row(number + 1, value)
                    number, failures = number + 1, 0
                return
            except UserError:
                raise
            except Exception as error:
                if _is_damage(error):
                    raise self._damaged(number) from error
                if not hub.is_connection_error(error):
                    self._refuse(error)
                    raise
                if info is None:
                    raise hub.unreachable("dataset", self._name, REMEDY) from error
                failures += 1
                if failures > MAX_RETRIES:
                    raise UserError(
                        f"'{self._name}' stopped answering at document {number:,} and did not come "
                        f"back after {MAX_RETRIES} tries: {cause_of(error)}"
                    ) from error
                _log.warning("%s: reading failed at document %d: %s", self._name, number, error)
                time.sleep(min(2**failures, 30))

    def _damaged(self, number: int) -> UserError:
        return UserError(
            f"'{self._name}' cannot be read at document {number:,}: its data is damaged or not in "
            f"the format that its name says; {REMEDY}."
        )

    def _refuse(self, error: Exception) -> None:
        """Raise `UserError` for what another try would not mend, such as a refusal."""
        if isinstance(error, OSError):
            raise UserError(hub.refused(self._name, error)) from error

    def _ask_hub(self) -> DatasetInfo | None:
        """The hub's description of the dataset; None when offline, or when the hub does not answer
        and the dataset may be in the cache.

        One request with a short timeout, because the downloader retries for much longer.
        """
        from huggingface_hub import HfApi, is_offline_mode
        from huggingface_hub.errors import RepositoryNotFoundError

        if is_offline_mode():
            return None
        try:
            return HfApi().dataset_info(self._name, timeout=hub.TIMEOUT_SECONDS)
        except RepositoryNotFoundError as error:
            raise hub.not_found("dataset", self._name, REMEDY) from error
        except Exception as error:
            if not hub.is_connection_error(error):
                self._refuse(error)
                raise
            if self._config.streaming:
                raise hub.unreachable("dataset", self._name, REMEDY) from error
            return None

    def _open(self, location: dict[str, Any]) -> Any:
        """Raises `UserError`; connection errors pass through."""
        from datasets import load_dataset
        from datasets.data_files import EmptyDatasetError
        from datasets.exceptions import (
            DatasetGenerationError,
            DatasetNotFoundError,
            DatasetsError,
        )

        split, column = self._config.split, column_of(self._config)
        try:
            with hub.room_for_downloads():
                rows = load_dataset(
                    self._name,
                    **location,
                    split=split,
                    streaming=self._config.streaming,
                    trust_remote_code=False,
                )
        except UserError:
            raise
        except DatasetNotFoundError as error:
            if "gated" in str(error):
                raise hub.gated("dataset", self._name) from error
            raise hub.not_found("dataset", self._name, REMEDY) from error
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, OSError) and not _is_damage(error.__cause__):
                raise error.__cause__ from None
            raise self._damaged(0) from error
        except (ValueError, DatasetsError, EmptyDatasetError) as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise UserError(
                f"The dataset '{self._name}' could not be opened: {cause_of(error)}{cause}"
            ) from error
        columns = rows.column_names or list(next(iter(rows), {}))
        if not columns:
            raise UserError(f"The split '{split}' of '{self._name}' is empty.")
        if column.name not in columns:
            raise no_column(column, f"'{self._name}'", columns)
        return rows

    def _is_script(self, info: DatasetInfo | None) -> bool:
        """Whether the dataset is a Python script, which `datasets` no longer runs."""
        script = f"{self._name.rpartition('/')[2]}.py"
        return info is not None and any(file.rfilename == script for file in info.siblings or [])

    def _conversion(self) -> dict[str, Any]:
        """Arguments of `load_dataset` for the hub's conversion of a script to Parquet."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            files = HfApi().list_repo_files(self._name, repo_type="dataset", revision=CONVERTED)
        except RevisionNotFoundError as error:
            raise UserError(
                f"'{self._name}' is a script, which is not run, and the hub has no conversion of "
                "it to Parquet; use another dataset or a local file."
            ) from error
        subsets = sorted({file.split("/")[0] for file in files if file.endswith(".parquet")})
        subset = self._config.subset or (subsets[0] if len(subsets) == 1 else None)
        if subset not in subsets:
            raise ConfigError.of(
                "data.subset", f"'{self._name}' has these: {', '.join(subsets)}; name one of them."
            )
        _log.info("%s is a script; reading the hub's conversion to Parquet instead", self._name)
        return {"data_dir": subset, "revision": CONVERTED}


def _is_damage(error: Exception) -> bool:
    """Whether Arrow raised the error for bytes that it cannot read; the network's errors are
    subclasses of `OSError`.
    """
    return isinstance(error, ValueError) or (type(error) is OSError and error.errno is None)
