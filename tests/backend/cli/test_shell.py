"""The shell's commands with the real engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend import store
from backend.cli.main import main
from backend.settings import Settings
from backend.store.database import Database

SMALL = [
    "--train.total_tokens=4096",
    "--train.batch_size_tokens=256",
    "--train.log_every=1",
    "--train.ce_tokens=256",
    "--train.snapshot_every=null",
    "--data.ctx_len=64",
    "--data.heldout_tokens=2000",
    "--index.tokens=2000",
    "--sae.d_sae=64",
    "--sae.k=4",
]
STEPS = 16


@pytest.fixture
def shell(settings: Settings, database: Database):
    """Run a command on the test's data folder; returns the newest run."""

    def run(*arguments: str):
        assert main([*arguments, "--data-dir", str(settings.data_dir)]) == 0
        with database.reading() as session:
            newest = store.list_runs(session, limit=1).rows
        return newest[0] if newest else None

    return run


def steps_of(database: Database, run_id: str) -> list[int]:
    with database.reading() as session:
        return store.metrics(session, run_id).step.tolist()


def test_activations_are_saved_and_a_run_on_them_is_continued_evaluated_and_exported(
    shell, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acts, folder, exported = (str(tmp_path / name) for name in ("acts", "run", "exported"))
    assert shell("train", "--quick-test", *SMALL, "--save-activations", acts) is None
    assert f"--load-activations {acts}" in " ".join(capsys.readouterr().out.split())

    files = ["--load-activations", acts, "--run-dir", folder, "--name", "first"]
    first = shell("train", "--quick-test", *SMALL, *files)
    assert (first.status, steps_of(database, first.id)[-1]) == ("finished", STEPS)
    assert (tmp_path / "run" / "sae.safetensors").exists()

    longer = shell("train", "--load-checkpoint", "first", "--train.total_tokens=6144")
    assert longer.name == "first continued"
    assert steps_of(database, longer.id) == list(range(STEPS + 1, 25))

    seen = shell("train", "--eval-only", "--load-checkpoint", folder)
    assert seen.name == "first evaluated"
    shell("export", "first", "--format", "saelens", exported)
    model = ["--model", "tiny-gemma2", "--layer", "2"]
    again = shell("import", exported, *model, "--data.activations", acts, *SMALL)
    for looked in (seen, again):
        assert (looked.status, looked.step) == ("finished", 0)
        for name in ("eval_fvu", "eval_l0", "frac_alive"):
            wanted = first.latest_metrics[name]
            assert looked.latest_metrics[name] == pytest.approx(wanted, rel=1e-5), name
    assert again.config["sae"]["pretrained"] == exported


def test_a_grid_trains_every_combination_on_one_pass(shell, database: Database) -> None:
    grid = ["--grid", "sae.k=2,4", "--grid", "model.layer=0,1"]
    newest = shell("train", "--quick-test", *SMALL, *grid, "--name", "sweep")
    with database.reading() as session:
        rows = store.group(session, newest.group_id)
    assert [row.status for row in rows] == ["finished"] * 4
    fvu = {row.name: row.latest_metrics["eval_fvu"] for row in rows}
    for layer in (0, 1):
        assert fvu[f"sweep k=4 layer={layer}"] < fvu[f"sweep k=2 layer={layer}"]
    assert {row.pid for row in rows} == {newest.pid}
