"""Start a run, follow it, and look up the features of a token through the REST API.

    make run                                   # in one terminal
    .venv/bin/python docs/examples/first_run.py    # in another

Takes half a minute without a GPU. For another server, set SAE_WORKBENCH_API_URL and
SAE_WORKBENCH_TOKEN.
"""

from __future__ import annotations

import os

from frontend.api.client import WorkbenchClient
from sae_engine.schema.machine import EstimateRequest
from sae_engine.schema.runs import MetricsEvent, RunCreate, Snapshot, StatusEvent

URL = os.environ.get("SAE_WORKBENCH_API_URL", "http://127.0.0.1:8501")


def main() -> None:
    with WorkbenchClient(URL, os.environ.get("SAE_WORKBENCH_TOKEN")) as client:
        # Estimate its cost. `config` overrides the preset.
        recipe = {"preset": "quick-test", "config": {"sae": {"k": 16}}}
        needs = client.estimate(EstimateRequest.model_validate(recipe))
        print(f"{needs.parameters:,} parameters, {needs.memory_bytes / 2**20:.0f} MiB of memory")
        for warning in needs.warnings:
            print(warning)

        # Queue it. With the key, a request that is sent twice creates one run.
        request = RunCreate.model_validate({**recipe, "name": "first run", "tags": ["example"]})
        run = client.create_run(request, idempotency_key=os.urandom(8).hex())
        print(f"run {run.id} is {run.status}: {run.waiting_for}")

        # Follow it. The stream ends with the run, and resumes if the server restarts.
        for event in client.events(run.id):
            match event.body:
                case MetricsEvent(step=step, values={"eval_fvu": fvu}):
                    print(f"step {step}: {fvu} of the held-out variance is unexplained")
                case Snapshot(step=step):
                    print(f"step {step}: features can be browsed")
                case StatusEvent(status=status):
                    print(f"the run is {status}")
                case _:
                    pass

        # Look up the features of a token, best match first.
        found = client.lookup(run.id, " import", limit=3)
        print(f"' import' occurs {found.count:,} times in the indexed text")
        for match in found.features:
            print(
                f"feature {match.index}: recall {match.recall:.0%}, precision {match.precision:.0%}"
            )

        # Show where the first of them fires.
        if found.features:
            feature = client.feature(run.id, found.features[0].index)
            for context in feature.contexts[:3]:
                text = "".join(context.tokens).replace("\n", "↵")
                print(f"{context.activation:6.2f}  {text}")


if __name__ == "__main__":
    main()
