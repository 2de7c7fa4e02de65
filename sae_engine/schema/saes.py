"""SAEs over REST: what the files of one say before it is imported, and a run pushed to the hub."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sae_engine.schema.config import PretrainedFormat
from sae_engine.schema.shape import Shape, examples


class FoundSAE(Shape):
    """What the files of an SAE say about it; null where they do not."""

    path: str
    name: str
    """Name that the run will have unless it is given another."""
    format: PretrainedFormat
    model: str | None
    """Language model that the SAE was trained on."""
    layer: int | None
    site: str | None
    hook_point: str | None
    """Module that the SAE reads, where that is more exact than `layer` and `site`."""
    hook_io: Literal["output", "input"]
    place: str
    """The place in the words of the files; empty if they do not name it."""
    remedy: str | None
    """What to do if the place cannot be selected by `layer` and `site`."""
    notes: list[str]
    """What differs from the program that trained it, or could not be honored."""


class UploadedSAE(Shape):
    """A file in the data folder's `imports`."""

    path: str
    """To import it, relative to the data folder."""
    bytes: int


class PushCreate(Shape):
    """Where to push a run's SAE."""

    model_config = examples({"target": "hub:me/my-sae"}, {"target": "hub:me/saes/layer-12"})
    target: str = Field(min_length=1, max_length=500)
    """`hub:OWNER/NAME`, or a folder in it, as `hub:OWNER/NAME/PATH`."""
    private: bool = True
    """Whether a repository that is created for it is private."""


class Pushed(Shape):
    """An SAE on the hub."""

    target: str
    url: str
    """Address of the commit."""
    files: list[str]
    """Paths in the repository, in alphabetical order."""
