"""Pushes a run's SAE to the Hugging Face hub in one commit: whole or not at all. No torch.

Called by the backend, which knows the run's name and figures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sae_engine import hub
from sae_engine.errors import UserError
from sae_engine.files import RunFolder, room_needed
from sae_engine.hub import HubName
from sae_engine.interop.export import export_saelens
from sae_engine.interop.hub_files import list_remote_files, one_sentence_errors
from sae_engine.interop.model_card import model_card, public_config, public_name, public_title
from sae_engine.schema.config import RunConfig
from sae_engine.schema.saes import Pushed
from sae_engine.scratch import scratch_folder

CARD, SAE, SETTINGS = "README.md", "sae.safetensors", "cfg.json"
REFUSED = (401, 403)


class PushedRun(NamedTuple):
    """What to push."""

    folder: RunFolder
    name: str
    config: RunConfig
    metrics: Mapping[str, float]
    """The newest values."""
    tokens: int
    """Training tokens."""


def push_sae(run: PushedRun, text: str, *, private: bool = True) -> Pushed:
    """Push to `text`, `hub:OWNER/NAME[/PATH]`: the SAE in our format and, in `saelens/`, in
    SAELens's; the configuration; and a model card.

    A repository that does not exist is created, and removed again if the push fails. Raises
    `UserError` for a run without an SAE, a folder with other files, or a refusal by the hub.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    target = HubName.parse(text)
    with (
        _allowed_to_write(target),
        room_needed(run.folder.path),
        # Beside the run's folder, from which a run that resumes removes temporary files.
        scratch_folder(run.folder.path.parent, "push") as folder,
    ):
        names = _write_files(run, target, folder)
        paths = {name: f"{target.path}/{name}" if target.path else name for name in names}
        api = HfApi()
        with _repository(api, target, paths.values(), private=private):
            additions = [CommitOperationAdd(paths[name], folder / name) for name in names]
            url = _commit(api, target, additions, f"Add the SAE of the run {run.name}")
    return Pushed(target=str(target), url=url, files=sorted(paths.values()))


def _commit(api: Any, target: HubName, additions: list[Any], message: str) -> str:
    """Upload the files and commit them; returns the commit's address."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        done = api.create_commit(
            target.repository, additions, commit_message=message, revision=target.revision
        )
    except HfHubHTTPError:
        raise
    except (ValueError, RuntimeError) as error:  # of an upload, or of an answer's form
        raise UserError(hub.refused(target.repository, error.__cause__ or error)) from error
    return done.commit_url


def _write_files(run: PushedRun, target: HubName, folder: Path) -> list[str]:
    """Write what is pushed into `folder`; returns the names."""
    export_saelens(run.folder, folder / "saelens")
    shutil.copyfile(run.folder.sae, folder / SAE)
    described = _public(json.loads(run.folder.sae_config.read_text("utf-8")), run.config)
    _write_json(folder / SETTINGS, described)
    theirs = folder / "saelens" / SETTINGS
    exported = json.loads(theirs.read_text("utf-8"))
    _write_json(theirs, exported | {"metadata": _public(exported["metadata"], run.config)})
    config = yaml.safe_dump(public_config(run.config), sort_keys=False)
    (folder / "config.yaml").write_text(config, "utf-8")
    card = model_card(target, run.name, run.config, described, run.metrics, run.tokens)
    (folder / CARD).write_text(card, "utf-8")
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _public(described: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    title = public_title(config.data)
    public = {"model_name": public_name(described["model_name"])}
    public |= {name: title for name in ("dataset", "dataset_path") if name in described}
    return described | public


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", "utf-8")


@contextmanager
def _repository(
    api: Any, target: HubName, paths: Collection[str], *, private: bool
) -> Generator[None]:
    """The repository, created if it does not exist; removed if it was and the block fails."""
    existing = list_remote_files(target)
    if existing is not None:
        _require_free(target, paths, existing)
        yield
        return
    api.create_repo(target.repository, private=private)
    try:
        yield
    except BaseException:
        with suppress(Exception):  # the first failure is the one to report
            api.delete_repo(target.repository)
        raise


def _require_free(target: HubName, paths: Collection[str], existing: Collection[str]) -> None:
    """Refuse to replace files unless they are those of an SAE pushed before."""
    taken = sorted(set(paths) & set(existing))
    sae = f"{target.path}/{SAE}" if target.path else SAE
    if taken and sae not in existing:
        raise UserError(
            f"'{target}' has {', '.join(taken[:3])} of something else already; push into a folder "
            f"of the repository, such as {hub.PREFIX}{target.repository}/my-sae."
        )


@contextmanager
def _allowed_to_write(target: HubName) -> Generator[None]:
    """Turn the hub's refusals into one sentence about the token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    remedy = f"set HF_TOKEN to a token that may write to '{target.repository}'."
    if get_token() is None:
        raise UserError(f"Pushing needs a token of the Hugging Face hub: {remedy}")
    with one_sentence_errors(target.repository):
        try:
            yield
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            if status in REFUSED:
                raise UserError(f"The hub refused the push: {remedy}") from error
            raise
