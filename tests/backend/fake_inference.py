"""A language-model process without torch whose answers take milliseconds; the text says what to do.

`python -c "from tests.backend.fake_inference import main; main()"` starts it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from backend.playground import worker as inference
from backend.playground.protocol import ReadTask, SteerTask
from sae_engine.errors import UserError
from sae_engine.schema.config import ModelConfig
from sae_engine.schema.playground import FeatureActivation, ReadToken, SteerToken, TextReading

FAKE_INFERENCE = (sys.executable, "-c", "from tests.backend.fake_inference import main; main()")


def main() -> None:
    inference.main(make_engine)


def read_task(text: str, model: str = "tiny-gemma2") -> ReadTask:
    return ReadTask(
        model=ModelConfig(name=model), sae=Path("sae"), text=text, ctx_len=8, top=3, features=[]
    )


def steer_task(prompt: str, max_new_tokens: int = 3) -> SteerTask:
    return SteerTask(
        model=ModelConfig(),
        sae=Path("sae"),
        prompt=prompt,
        activations={1: 2.5},
        max_new_tokens=max_new_tokens,
        temperature=1.0,
        seed=0,
    )


def make_engine(report: Callable[[str], None]) -> inference.Load:
    def load(task: ReadTask | SteerTask) -> Callable[[], inference.Parts]:
        if task.model.name == "absent":
            raise UserError("There is no model 'absent'.")
        action, *rest = (task.text if isinstance(task, ReadTask) else task.prompt).split(" ")
        if action == "load":
            report("loading the fake model")
            _wait_for(Path(rest[0]))
        return lambda: _answer(task, action, rest)

    return load


def _answer(
    task: ReadTask | SteerTask, action: str, rest: list[str]
) -> Iterator[TextReading | SteerToken]:
    if action == "refuse":
        raise UserError("The text is invalid; give another.")
    if action == "break":
        raise ZeroDivisionError("a bug\nin two lines")
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "exit":
        os._exit(7)
    if action == "print":
        print('{"kind": "end", "number": 1}', flush=True)
        os.system("echo noise")
    if action == "begin":
        Path(rest[0]).touch()
    if isinstance(task, ReadTask):
        token = ReadToken(
            id=1,
            text=str(os.getpid()),
            excluded=None,
            num_active=1,
            total=2.5,
            features=[FeatureActivation(index=1, activation=2.5)],
        )
        yield TextReading(tokens=[token], activations=[[0.5] for _ in task.features])
        return
    try:
        for number in range(task.max_new_tokens):
            yield SteerToken(side="plain", text=f"p{number}")
            yield SteerToken(side="steered", text=f"s{number}")
            if action == "slow":
                time.sleep(0.02)
    finally:
        if action == "slow":
            Path(rest[0]).touch()


def _wait_for(gate: Path) -> None:
    deadline = time.monotonic() + 60
    while not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
