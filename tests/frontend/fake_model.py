"""The playground's language model, in milliseconds and without torch.

A token is a word with the space before it. Feature 10 fires on `import`, feature 3 on every word,
the longer the more. Texts that begin with `refuse`, `break` or `load FILE` do what
`tests.backend.fake_inference` says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator

from backend.playground import worker
from backend.playground.protocol import ReadTask, SteerTask
from sae_engine.schema.playground import FeatureActivation, ReadToken, SteerToken, TextReading
from tests.backend import fake_inference
from tests.frontend.samples import NASTY

FAKE_MODEL = (sys.executable, "-c", "from tests.frontend.fake_model import main; main()")
IMPORT, WORD = 10, 3
BOS = ReadToken(id=2, text="<bos>", excluded="BOS", num_active=0, total=0.0, features=[])


def main() -> None:
    worker.main(make_engine)


def make_engine(report: Callable[[str], None]) -> worker.Load:
    load_by_action = fake_inference.make_engine(report)

    def load(task: ReadTask | SteerTask) -> Callable[[], worker.Parts]:
        by_action = load_by_action(task)
        text = task.text if isinstance(task, ReadTask) else task.prompt
        if text.split(" ")[0] in ("refuse", "break"):
            return by_action
        return lambda: iter([_read(task)]) if isinstance(task, ReadTask) else _continue()

    return load


def _read(task: ReadTask) -> TextReading:
    tokens = [BOS, *map(_token, re.findall(r"\s*\S+|\s+", task.text))]
    found = [{f.index: f.activation for f in token.features} for token in tokens]
    activations = [[of.get(index, 0.0) for of in found] for index in task.features]
    return TextReading(tokens=tokens, activations=activations)


def _token(text: str) -> ReadToken:
    active = {IMPORT: 7.5} if text.strip() == "import" else {}
    active[WORD] = len(text) / 2
    features = [FeatureActivation(index=i, activation=value) for i, value in active.items()]
    total = sum(active.values())
    return ReadToken(
        id=7, text=text, excluded=None, num_active=len(active), total=total, features=features
    )


def _continue() -> Iterator[SteerToken]:
    for number in range(2):
        yield SteerToken(side="plain", text=f" plain{number}")
        yield SteerToken(side="steered", text=f" {NASTY}{number}")
