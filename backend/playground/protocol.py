"""What the server and the process that holds the language model say to each other: JSON, one
message a line, questions down one pipe and replies up the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sae_engine.schema.config import ModelConfig
from sae_engine.schema.playground import SteerToken, TextReading


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(Message):
    """What is to be done with the language model and the SAE that it names."""

    model: ModelConfig
    sae: Path


class ReadTask(Task):
    """The features of a text; see `probe.read_text`."""

    kind: Literal["read"] = "read"
    text: str
    ctx_len: int
    top: int
    features: list[int]


class SteerTask(Task):
    """How a prompt goes on; see `probe.steer`."""

    kind: Literal["steer"] = "steer"
    prompt: str
    activations: dict[int, float]
    """How strongly each feature is added, as an activation."""
    max_new_tokens: int
    temperature: float
    seed: int


class Question(Message):
    number: int
    task: Annotated[ReadTask | SteerTask, Field(discriminator="kind")] | None
    """None takes the question of this number back."""


class PhaseReply(Message):
    """What is being waited for, in words; holds until something else is replied."""

    kind: Literal["phase"] = "phase"
    phase: str


class PartReply(Message):
    """A part of an answer: the whole reading, or one more token."""

    kind: Literal["part"] = "part"
    number: int
    part: TextReading | SteerToken


class EndReply(Message):
    """The answer is complete, or was taken back."""

    kind: Literal["end"] = "end"
    number: int


class FailReply(Message):
    """There is no answer: the model or the SAE cannot be loaded, the question cannot be answered
    as it is, or the program is broken.
    """

    kind: Literal["fail"] = "fail"
    number: int
    reason: Literal["unloadable", "refused", "broken"]
    message: str


Reply = Annotated[PhaseReply | PartReply | EndReply | FailReply, Field(discriminator="kind")]
REPLY: TypeAdapter[PhaseReply | PartReply | EndReply | FailReply] = TypeAdapter(Reply)
