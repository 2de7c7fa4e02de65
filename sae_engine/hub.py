"""Names of SAEs on the Hugging Face hub, and messages for its failures: one sentence, one remedy.

Read by `text` for datasets, by `model` for language models and by `interop` for SAEs.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from sae_engine.errors import UserError
from sae_engine.files import room_needed

TIMEOUT_SECONDS = 5
"""For the one request made before a download; the library retries for much longer."""

PREFIX = "hub:"
NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([^/\s]+))?(?:/(.*))?", re.ASCII)
_UNREACHABLE = {
    *("TransportError", "LocalEntryNotFoundError"),
    *("ConnectionError", "Timeout", "ChunkedEncodingError"),
}
"""Errors of httpx and of the hub's library, and of requests."""
Kind = Literal["model", "dataset", "repository"]


class UnreachableError(UserError):
    """The hub does not answer, and what was asked for is not in the cache."""


class HubName(NamedTuple):
    """A repository and a path in it, parsed from `hub:OWNER/NAME[@REVISION][/PATH]`."""

    repository: str
    revision: str | None
    path: str
    """Of a file or a folder; empty for the repository itself."""

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Raises `UserError` for a text that is no such name."""
        found = NAME.fullmatch(text.strip())
        path = PurePosixPath((found and found[3]) or "")
        if found is None or ".." in path.parts or path.is_absolute():
            raise UserError(
                f"'{text}' does not name an SAE on the hub; write hub:OWNER/NAME/PATH, such as "
                "hub:google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82."
            )
        return cls(found[1], found[2], "" if str(path) == "." else str(path))

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return PREFIX + "/".join(filter(None, [self.repository + revision, self.path]))


def is_on_hub(text: str) -> bool:
    return text.strip().startswith(PREFIX)


def is_connection_error(error: BaseException) -> bool:
    """Whether the network or an overloaded hub is to blame, and not, say, a full disk.

    Classes of HTTP clients are known by name, because the hub's library uses httpx or httpx2,
    whichever is installed, and some readers use requests.
    """
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    is_overloaded = status is not None and (status == 429 or status >= 500)
    return is_overloaded or not names.isdisjoint(_UNREACHABLE)


def require_model(name: str, remedy: str) -> None:
    """Raise `UserError` unless the hub's model `name` is cached or can be downloaded. One request
    with a short timeout.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        if _is_cached(name):
            return
        if is_offline_mode():
            raise offline("model", name, remedy)
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=TIMEOUT_SECONDS)
    except GatedRepoError:
        raise gated("model", name) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise not_found("model", name, f"check the name, or {remedy}") from None
    except Exception as error:
        if is_connection_error(error):
            raise unreachable("model", name, remedy) from None
        if isinstance(error, HfHubHTTPError | OSError):
            raise UserError(refused(name, error)) from None
        raise


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    def have(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file), str)

    weights = ("model.safetensors", "model.safetensors.index.json")
    return have("config.json") and any(map(have, weights))


@contextmanager
def room_for_downloads() -> Generator[None]:
    """Raise `DiskFullError` if the disk of the hub's cache is full."""
    from huggingface_hub.constants import HF_HOME

    with room_needed(Path(HF_HOME)):
        yield


def gated(kind: Kind, name: str) -> UserError:
    return UserError(
        f"The {kind} '{name}' is gated: accept its terms on its Hugging Face page and set HF_TOKEN "
        "to a token of that account."
    )


def not_found(kind: Kind, name: str, remedy: str) -> UserError:
    return UserError(
        f"There is no {kind} '{name}' on the Hugging Face hub (or it is private and HF_TOKEN is "
        f"not set); {remedy}."
    )


def unreachable(kind: Kind, name: str, remedy: str) -> UserError:
    return UnreachableError(
        f"The {kind} '{name}' is not cached and the Hugging Face hub cannot be reached: check the "
        f"network, or {remedy}."
    )


def offline(kind: Kind, name: str, remedy: str) -> UserError:
    return UserError(
        f"The {kind} '{name}' is not in the local cache and HF_HUB_OFFLINE is set: unset it, or "
        f"{remedy}."
    )


def refused(name: str, error: BaseException) -> str:
    """Why the hub refused a request about `name`, in one line."""
    reason = str(error).strip().splitlines() or ["no reason given"]
    return f"The hub refused a request about '{name}': {reason[-1].strip()}"
