"""What the fake API knows: runs that get on with every look, features with examples."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from sae_engine.presets import presets
from sae_engine.schema import features as api
from sae_engine.schema import runs
from sae_engine.schema.config import RunConfig
from sae_engine.schema.labels import LabelJob, LabelOrigin, LabelUpdate
from sae_engine.schema.playground import ActivationsRequest, SteerRequest

D_SAE = 512
SEEN = 50_000
TOTAL_STEPS = 489
BATCH = 1024
NASTY = "<script>alert('x')</script>"
WORDS = [
    *[
        "\n",
        "import",
        "os\n",
        "import",
        "sys\n",
        "def",
        "__init__",
        "(",
        "self",
        ",",
        "*",
        "args",
        ")",
        ":",
        "\n",
        "return",
        "self",
        ".",
        "value",
    ],
    *f"\n raise ValueError ( {NASTY} ) $x$ *bold* _it_ :smile: [a](b)".split(" "),
]


class World:
    """Runs kept in memory; a running one ends after `seconds`."""

    def __init__(self, *, seconds: float = 60.0, empty: bool = False) -> None:
        self.seconds = seconds
        self.runs: dict[str, runs.Run] = {}
        self.created: list[runs.RunCreate] = []
        self.keys: dict[str, str] = {}
        self.labels = {3: LabelUpdate(label=f"{NASTY} $x$", notes="", starred=True)}
        self.origins: dict[int, LabelOrigin] = {}
        self.label_jobs: list[LabelJob] = []
        self.can_label = True
        self.extra_snapshots: list[int] = []
        self.down = False
        self.read: list[ActivationsRequest] = []
        self.steered: list[SteerRequest] = []
        self.phases: list[str] = []
        """What the next answer about an own text waits for, a moment each."""
        self.computing = False
        self.failing = False
        self.asked = 0
        self.obstacle = ""
        self.supervises = True
        self.sweeps: list[runs.SweepCreate] = []
        self.queue: list[str] = []
        if not empty:
            tiny = presets()["tiny"].config
            self.add("finished", tiny, name="tiny baseline", status="finished", minutes=90)
            self.add("failed", tiny, name="lr too high", status="failed", minutes=60)
            self.add("live", tiny, name=f"live {NASTY}", status="running")

    def add(
        self,
        run_id: str,
        config: RunConfig,
        *,
        name: str,
        status: runs.RunStatus,
        minutes: float = 0.0,
    ) -> runs.Run:
        """Make a run that started some minutes ago."""
        start = datetime.now(UTC) - timedelta(minutes=minutes)
        words = "The loss became NaN at step 120; lower train.lr."
        error = runs.RunError(type="NonFiniteLossError", message=words, log_tail="step 120 nan")
        self.runs[run_id] = runs.Run(
            id=run_id,
            name=name,
            status=status,
            config=config,
            tags=[],
            notes="",
            archived=False,
            group_id=None,
            cloned_from=None,
            device="cpu",
            queue_position=None,
            waiting_for=None,
            alerts=[],
            created_at=start,
            started_at=start,
            ended_at=None if status == "running" else start + timedelta(seconds=95),
            progress=self.progress(0),
            metrics={},
            error=error if status == "failed" else None,
            resumable=False,
        )
        return self.look(run_id)

    def progress(self, step: int) -> runs.Progress:
        """How far a run is at a step."""
        return runs.Progress(
            step=step,
            total_steps=TOTAL_STEPS,
            tokens=step * BATCH,
            total_tokens=TOTAL_STEPS * BATCH,
            tokens_per_second=9_000.0,
            eta_seconds=(TOTAL_STEPS - step) / TOTAL_STEPS * self.seconds,
            phase="training",
        )

    def look(self, run_id: str) -> runs.Run:
        """A run as it stands now."""
        run = self.runs[run_id]
        step = {"finished": TOTAL_STEPS, "failed": 120}.get(run.status, run.progress.step)
        if run.status == "running":
            assert run.started_at is not None
            spent = (datetime.now(UTC) - run.started_at).total_seconds()
            step = min(TOTAL_STEPS, int(TOTAL_STEPS * spent / self.seconds))
            if step == TOTAL_STEPS:
                run = run.model_copy(update={"status": "finished", "ended_at": datetime.now(UTC)})
        measured: dict[str, Any] = {k: v for k, v in point(step).items() if v is not None}
        if run.status == "failed":
            measured["loss"] = "NaN"
        if run.status == "finished":
            measured |= {"ce_delta": 0.21, "eval_fvu": 0.131, "eval_l0": 31.4}
        update: dict[str, Any] = {"progress": self.progress(step)}
        update["metrics"] = measured if step else {}
        if run.status != "queued" and run_id in self.queue:
            self.queue.remove(run_id)
        waits = run.status == "queued" and run_id in self.queue
        update["queue_position"] = self.queue.index(run_id) + 1 if waits else None
        update["waiting_for"] = f"It waits for cuda:0, taken by '{NASTY}'." if waits else None
        self.runs[run_id] = run.model_copy(update=update)
        return self.runs[run_id]

    def wait(self, run_id: str, name: str, **changes: Any) -> None:
        """Make a run that waits at the end of the queue."""
        self.queue.append(run_id)
        self.add(run_id, presets()["tiny"].config, name=name, status="queued")
        update = {"started_at": None, "ended_at": None, "metrics": {}} | changes
        self.runs[run_id] = self.runs[run_id].model_copy(update=update)

    def move(self, run_id: str, position: int) -> None:
        """Put a run that waits at a place of the queue."""
        self.queue.remove(run_id)
        self.queue.insert(position - 1, run_id)

    def notices(self, run_id: str) -> list[runs.Notice]:
        """A remark, and an alert where the run has one."""
        run = self.runs[run_id]
        alerts = [("warning", kind, f"Alert {NASTY}", 50) for kind in run.alerts]
        return [
            runs.Notice.model_validate(
                {
                    "level": level,
                    "kind": kind,
                    "message": message,
                    "step": step,
                    "created_at": run.created_at,
                }
            )
            for level, kind, message, step in [("info", None, "1 row was dropped.", 1), *alerts]
        ]

    def metrics(self, run_id: str, since_step: int) -> runs.MetricsSeries:
        """A point every five steps."""
        run = self.look(run_id)
        steps = [s for s in range(5, run.progress.step + 1, 5) if s > since_step]
        series: dict[str, list[runs.MetricValue]] = {
            name: [point(step)[name] for step in steps] for name in point(0)
        }
        if run.status == "failed" and steps:
            series["loss"][-1] = "NaN"
        return runs.MetricsSeries(
            step=steps,
            tokens=[s * BATCH for s in steps],
            time=[s * 0.2 for s in steps],
            series=series,
            total_points=len(steps),
            returned_points=len(steps),
        )

    def snapshots(self, run_id: str) -> list[runs.Snapshot]:
        """One every hundred steps, and the final one."""
        run = self.look(run_id)
        steps = [*range(100, run.progress.step + 1, 100), *self.extra_snapshots]
        if run.status == "finished":
            steps.append(TOTAL_STEPS)
        now = datetime.now(UTC)
        return [
            runs.Snapshot(
                step=step,
                tokens=step * BATCH,
                index_tokens=SEEN,
                created_at=now,
                final=step == TOTAL_STEPS,
            )
            for step in steps
        ]

    def row(self, index: int) -> api.FeatureRow:
        """One feature of the list; every fiftieth is dead."""
        dead = index % 50 == 49
        fired = 0 if dead else 12 + index * 7
        top = 0.0 if dead else 1.0 + (index % 37) / 5
        return api.FeatureRow(
            index=index,
            density=api.Density(fraction=fired / SEEN, fired=fired, seen=SEEN),
            max_activation=top,
            state="dead" if dead else "alive",
            label=self.labels[index].label if index in self.labels else None,
            example=None if dead else context(index, top),
            top_tokens=[] if dead else [" import", "\n", " self", "<b>"],
        )


def point(step: int) -> dict[str, float | None]:
    """Plausible values of one step."""
    noise = random.Random(step).gauss(0, 0.01)
    fvu = 0.12 + 0.8 * math.exp(-step / 60) + noise
    held_out = step % 100 == 0
    return {
        "loss": fvu * 1.05,
        "fvu": fvu,
        "l0": 31.5 + 10 * noise,
        "frac_dead": 0.02 * math.exp(-step / 200),
        "lr": 3e-4 * min(1, step / 50),
        "tokens_per_second": 9_000 + 4e4 * noise,
        "eval_fvu": fvu + 0.01 if held_out else None,
        "eval_l0": 31.4 if held_out else None,
    }


def context(seed: int, top: float) -> api.Context:
    """An example whose peak is `top`."""
    chooser = random.Random(seed)
    start = chooser.randrange(len(WORDS))
    peak = 30 if seed % 5 else 2
    values = [0.0] * 60
    for near in range(max(0, peak - 3), peak + 3):
        values[near] = top * chooser.random() * 0.6
    values[peak] = top
    return api.Context(
        tokens=[" " + WORDS[(start + i) % len(WORDS)] for i in range(60)],
        activations=values,
        activation=top,
        peak=peak,
        position=peak,
        row=seed,
        copies=3 if seed % 4 == 0 else 1,
    )
