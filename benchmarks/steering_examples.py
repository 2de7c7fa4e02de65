"""How many steering examples show an effect, by prompt and strength.

    python benchmarks/steering_examples.py RUN [--url http://127.0.0.1:8501] [--examples 40]

Steers with the examples among which the playground's button Try an example searches, on a server
that has a finished run, and prints for each prompt and strength: the number of examples that the
button would accept, the mean additional occurrences of the word, and the mean variety of the text.
"""

from __future__ import annotations

from collections.abc import Iterator

from _common import parser

from frontend.api.client import WorkbenchClient
from frontend.features.steering import NEW_TOKENS, SEED, TEMPERATURE
from frontend.features.steering_example import (
    CANDIDATES,
    CLEAR_GAIN,
    Example,
    examples_of,
    gain,
    variety,
)
from sae_engine.schema.playground import SteerResult

PROMPTS = ("The", "# This module")
STRENGTHS = (0.5, 0.75, 1.0, 1.5)


def steered(client: WorkbenchClient, run: str, example: Example, prompt: str, strength: float):
    """The two texts, sampled as the playground does by default."""
    stream = client.steer(
        run,
        prompt,
        {example.feature: strength},
        max_new_tokens=NEW_TOKENS,
        seed=SEED,
        temperature=TEMPERATURE,
    )
    return result_of(stream)


def result_of(stream: Iterator[object]) -> SteerResult:
    """The value that a generator returns."""
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("run")
    arguments.add_argument("--url", default="http://127.0.0.1:8501")
    arguments.add_argument("--examples", type=int, default=40)
    given = arguments.parse_args()
    client = WorkbenchClient(given.url)
    rows = client.features(given.run, state="alive", sort="clarity", limit=CANDIDATES).items
    tried = examples_of(rows)[: given.examples]
    print(f"{len(tried)} examples: {', '.join(example.word for example in tried)}")
    for prompt in PROMPTS:
        for strength in STRENGTHS:
            results = [
                (example, steered(client, given.run, example, prompt, strength))
                for example in tried
            ]
            gains = [gain(example.word, result) for example, result in results]
            accepted = [e.word for e, g in zip(tried, gains, strict=True) if g >= CLEAR_GAIN]
            varied = sum(variety(result.steered) for _, result in results) / len(results)
            print(
                f"{prompt!r} x {strength}: {len(accepted)} show an effect, mean gain "
                f"{sum(gains) / len(gains):.2f}, variety {varied:.2f}: {', '.join(accepted)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
