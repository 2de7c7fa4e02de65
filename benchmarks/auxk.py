"""Cost of AuxK in a training step when some latents are dead.

    python benchmarks/auxk.py [--dead 0.05] [--positive 0.06] [--sizes S1 S3]

Steps with and without dead latents alternate, on normally distributed activations. During training,
the dead latents of S1 are positive on 4 to 10% of the tokens (fewer the more latents are dead);
`--positive` sets their biases accordingly. Sizes, batch and k are those of `peers/compare.py`.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch
from _common import machine, parser, seconds

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from compare import SIZES, Size  # pyright: ignore[reportMissingImports]

from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.stepper import DeadLatents, StepSettings
from sae_engine.sae.stepper_choice import open_stepper

TURNS = 9


def step_times(size: Size, dead_share: float, positive: float) -> tuple[float, float]:
    """Median seconds of a step without and with dead latents."""
    sae = TopKSAE(size.d_in, size.d_sae, size.k)
    sae.initialize_(0, torch.zeros(size.d_in))
    x = torch.randn(size.batch, size.d_in, generator=torch.Generator().manual_seed(0))
    dead = torch.randperm(size.d_sae)[: int(dead_share * size.d_sae)].sort().values
    # pre-activations of unit rows on normal inputs are standard normal
    sae.b_enc.data[dead] = torch.distributions.Normal(0, 1).icdf(torch.tensor(positive))
    stepper = open_stepper(sae)
    objective = StepSettings(float(size.d_in), 1 / 32, 0.0, float("inf"), False, wants_norm=False)
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(TURNS + 1):
        for has_dead in (False, True):
            given = DeadLatents.of(dead[: len(dead) * has_dead], size.d_sae)
            taken = seconds(lambda given=given: stepper.step(x, objective, given, 0.0))
            if turn:  # the first compiles
                times[has_dead].append(taken)
    return statistics.median(times[False]), statistics.median(times[True])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--dead", type=float, default=0.05)
    arguments.add_argument("--positive", type=float, default=0.06)
    arguments.add_argument("--sizes", nargs="+", default=["S1", "S2", "S3", "S4"], choices=SIZES)
    options = arguments.parse_args()
    print(machine())
    print(f"{options.dead:.0%} of latents dead, positive on {options.positive:.0%} of tokens\n")
    print("| size | step, ms | with AuxK | AuxK's share |\n|---|---|---|---|")
    for name in options.sizes:
        without, with_auxk = step_times(SIZES[name], options.dead, options.positive)
        share = 1 - without / with_auxk
        print(f"| {name} | {without * 1e3:.1f} | {with_auxk * 1e3:.1f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
