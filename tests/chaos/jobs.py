"""Jobs of the real engine that read little text before their first step, so that tests can disturb
many of them: `python -m tests.chaos.jobs <job>`.
"""

from __future__ import annotations

import sys

from backend.jobs import worker

TOKENS_PER_BLOCK = 512


def quick_job(job: str) -> list[str]:
    """The command line of such a job."""
    return [sys.executable, "-m", "tests.chaos.jobs", job]


def main() -> int:
    from sae_engine.activations import stream as activations

    activations.TOKENS_PER_BLOCK = TOKENS_PER_BLOCK
    return worker.main(*sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
