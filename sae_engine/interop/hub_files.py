"""SAEs in repositories of the Hugging Face hub, named `hub:OWNER/NAME[@REVISION][/PATH]`. No torch.

Only the files that are asked for are downloaded, by the hub's own library into its cache. Used by
`files` and `push`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from sae_engine import hub
from sae_engine.errors import UserError, cause_of
from sae_engine.hub import HubName

REMEDY = "download the SAE's folder and give its path"


class HubFolder:
    """A folder of a repository: the names of its files, and the files on request."""

    def __init__(self, name: HubName, all_files: list[str]) -> None:
        self._name = name
        is_file = name.path in all_files
        folder = PurePosixPath(name.path)
        self.file_name = folder.name if is_file else ""
        """The file that was named; empty if a folder was."""
        folder = folder.parent if is_file else folder
        self.path = "" if str(folder) == "." else str(folder)
        self._all_files = frozenset(all_files)
        start = f"{self.path}/" if self.path else ""
        inside = [file.removeprefix(start) for file in all_files if file.startswith(start)]
        self.files = [name for name in inside if "/" not in name]
        self.folders = sorted({name.split("/")[0] for name in inside if "/" in name})
        if not inside:
            raise UserError(f"There is no file or folder '{name}'; check the path.")

    @classmethod
    def open(cls, text: str) -> HubFolder:
        """Ask the hub for the repository's files; offline, those in the cache. `UserError`."""
        name = HubName.parse(text)
        return cls(name, list_files(name))

    @property
    def repository(self) -> str:
        return self._name.repository

    @property
    def shown(self) -> str:
        return str(self._name._replace(path=self.path))

    def has(self, name: str) -> bool:
        return self._at(name) in self._all_files

    def fetch(self, name: str) -> Path:
        """The local path of the file `name` in this folder, downloaded unless it is cached."""
        from huggingface_hub import hf_hub_download

        repository, revision, _ = self._name
        with one_sentence_errors(repository), hub.room_for_downloads():
            found = hf_hub_download(
                repository,
                self._at(name),
                revision=revision,
                etag_timeout=hub.TIMEOUT_SECONDS,
            )
        return Path(found)

    def size_of(self, name: str) -> int | None:
        """The size in bytes of the file `name` in this folder; None if the hub does not say."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode

        repository, revision, _ = self._name
        if is_offline_mode():
            return None
        with suppress(UserError), one_sentence_errors(repository):  # `fetch` explains
            url = hf_hub_url(repository, self._at(name), revision=revision)
            return get_hf_file_metadata(url, timeout=hub.TIMEOUT_SECONDS).size
        return None

    def _at(self, name: str) -> str:
        up, here = name.startswith("../"), PurePosixPath(self.path)
        if up and not self.path:
            return name
        return str((here.parent if up else here) / name.removeprefix("../"))


def list_files(name: HubName) -> list[str]:
    """Paths of all files of a repository, or of those in the cache if the hub can't be reached."""
    from huggingface_hub import is_offline_mode

    if not is_offline_mode():
        with suppress(hub.UnreachableError), one_sentence_errors(name.repository):
            found = list_remote_files(name)
            if found is None:
                raise hub.not_found("repository", name.repository, "check the name")
            return found
    return _cached_files(name)


def list_remote_files(name: HubName) -> list[str] | None:
    """Paths of all files of a repository on the hub; None if there is none. The hub's errors."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(
            name.repository, revision=name.revision, timeout=hub.TIMEOUT_SECONDS
        )
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    return sorted(file.rfilename for file in info.siblings or [])


def _cached_files(name: HubName) -> list[str]:
    from huggingface_hub import snapshot_download

    with one_sentence_errors(name.repository):
        found = snapshot_download(name.repository, revision=name.revision, local_files_only=True)
    root = Path(found)
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@contextmanager
def one_sentence_errors(repository: str) -> Generator[None]:
    """Turn errors of the hub into a `UserError` with the remedy."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    reasons: list[tuple[type[Exception], Callable[[Exception], UserError]]] = [
        (GatedRepoError, lambda _: hub.gated("repository", repository)),
        (
            RepositoryNotFoundError,
            lambda _: hub.not_found("repository", repository, "check the name"),
        ),
        (HFValidationError, lambda error: UserError(f"'{repository}' is no repository: {error}")),
        (
            RevisionNotFoundError,
            lambda _: UserError(f"'{repository}' has no such revision; check what follows the @."),
        ),
        (
            LocalEntryNotFoundError,
            lambda _: hub.unreachable("repository", repository, REMEDY),
        ),
        (
            EntryNotFoundError,
            lambda _: UserError(f"'{repository}' lists a file that it does not have; try again."),
        ),
        (HfHubHTTPError, lambda error: UserError(hub.refused(repository, error))),
    ]
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        for kind, explain in reasons:
            if isinstance(error, kind):
                raise explain(error) from error
        if hub.is_connection_error(error):
            raise hub.unreachable("repository", repository, REMEDY) from error
        if isinstance(error, OSError):
            raise UserError(
                f"The files of '{repository}' cannot be used: {cause_of(error)}."
            ) from error
        raise
