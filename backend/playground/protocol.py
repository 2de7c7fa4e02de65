"""The messages between `client` and `worker`: JSON, one message per line, questions down one pipe
and replies up the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sae_engine.schema.config import ModelConfig
from sae_engine.schema.playground import SteerToken, TextReading


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelTask(Message):
    """Work for one language model and one SAE."""

    model: ModelConfig
    sae: Path
    model_file: Path | None = None
    """Tells the run's language model from later ones of the same name; None without a check."""
    vocab_size: int | None = None
    """Of the run's index, for older runs without that file."""
    largest_norm: float | None = None
    """Of tokens that have features; see `Manifest`."""


class ReadTask(ModelTask):
    """Read the features of a text; see `sae_engine.playground.read.read_text`."""

    kind: Literal["read"] = "read"
    text: str
    ctx_len: int
    top: int
    features: list[int]


class SteerTask(ModelTask):
    """Continue a prompt, plain and steered; see `sae_engine.playground.steer.steer`."""

    kind: Literal["steer"] = "steer"
    prompt: str
    activations: dict[int, float]
    """The activation that is added for each feature."""
    max_new_tokens: int
    temperature: float
    seed: int


Task = ReadTask | SteerTask


class Question(Message):
    """A numbered task; a question without one cancels the earlier question of its number."""

    number: int
    task: Annotated[Task, Field(discriminator="kind")] | None


class PhaseReply(Message):
    """What the worker is doing; holds until its next reply."""

    kind: Literal["phase"] = "phase"
    phase: str


Part = TextReading | SteerToken


class PartReply(Message):
    """Part of an answer: a whole reading, or one token."""

    kind: Literal["part"] = "part"
    number: int
    part: Part


class EndReply(Message):
    """The answer is complete, or its question was canceled."""

    kind: Literal["end"] = "end"
    number: int


class FailReply(Message):
    """There is no answer: the model or SAE cannot be loaded (`unloadable`), the question is invalid
    (`refused`), or the worker failed (`broken`).
    """

    kind: Literal["fail"] = "fail"
    number: int
    reason: Literal["unloadable", "refused", "broken"]
    message: str


Reply = PhaseReply | PartReply | EndReply | FailReply
REPLY: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])
