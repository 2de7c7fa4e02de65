"""Runs side by side: settings that differ, last and best values, curves, matched features."""

from __future__ import annotations

import pytest

from frontend.html.format import number
from frontend.runs.comparison import metrics_table
from sae_engine.schema.analysis import BestValue
from sae_engine.schema.records import METRICS
from tests.frontend.samples import ESCAPED
from tests.frontend.seeding import BEST_FVU, BEST_STEP
from tests.frontend.views.test_overview import plots
from tests.frontend.views.test_pages import Open, address, followed, shown
from tests.frontend.workbench import Workbench

ALL = {"runs": "finished,failed,live"}


def test_runs_are_chosen_in_a_box_and_kept_in_the_address(open_page: Open) -> None:
    app = open_page("run", id="finished")
    followed(app, "Compare")
    assert address(app, "runs") == "finished"
    app = open_page("compare", runs="finished")
    assert "Choose two or more runs" in shown(app)
    app.multiselect(key="chosen-runs").set_value(["finished", "failed", "live"]).run()
    assert address(app, "runs") == "finished,failed,live"
    assert "Metrics: last and best" in shown(app)


def test_only_settings_that_differ_are_shown(open_page: Open, workbench: Workbench) -> None:
    assert "These runs have the same settings." in shown(open_page("compare", **ALL))
    workbench.configure("failed", "model", layer=5)
    text = shown(open_page("compare", **ALL))
    assert "<code>model.layer</code></td><td>2</td><td>5</td><td>2</td>" in text


def test_chosen_settings_that_differ_are_compared(open_page: Open, workbench: Workbench) -> None:
    workbench.change("finished", chosen={"train.lr": 1e-3, "model.dtype": "float32"})
    workbench.change("failed", chosen={"train.lr": 2e-3, "model.dtype": "float32"})
    text = shown(open_page("compare", runs="finished,failed"))
    values = "<td>0.00100 (chosen)</td><td>0.00200 (chosen)</td>"
    assert f"<code>train.lr</code></td>{values}" in text
    assert "model.dtype" not in text


def test_the_best_value_is_shown_beside_the_last_one(open_page: Open) -> None:
    best = f'<small title="Best, at step {BEST_STEP}">best {number(BEST_FVU)}</small>'
    assert best in shown(open_page("compare", **ALL))


def test_every_run_has_a_curve_in_its_own_color_in_every_chart(open_page: Open) -> None:
    figures = [plot["figure"] for plot in plots(open_page("compare", **ALL, x="tokens")).values()]
    [fvu] = [f for f in figures if f["layout"].get("title", {}).get("text") == "FVU"]
    curves = {trace["name"]: trace for trace in fvu["data"] if "name" in trace}
    assert len({curve["line"]["color"] for curve in curves.values()}) == len(curves) == 3
    assert curves["tiny baseline"]["x"][0] == 5 * 1024
    assert all("<script" not in name for name in curves)


def test_an_address_may_name_its_two_runs_a_and_b(open_page: Open) -> None:
    app = open_page("compare", a="finished", b="failed")
    assert app.multiselect(key="chosen-runs").value == ["finished", "failed"]


def test_features_are_matched_between_two_of_three_runs(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.add_features("live", "b", 100)
    app = open_page("compare", **ALL, part="features")
    assert 'href="feature?id=failed&amp;index=3"' in shown(app)
    app.selectbox(key="url:b").set_value("live").run()
    assert 'href="feature?id=live&amp;index=3"' in shown(app)
    assert "runs=finished%2Cfailed%2Clive" in shown(app)  # the headings keep all of them


def test_latents_that_only_begin_to_die_have_no_best_value(workbench: Workbench) -> None:
    runs = [workbench.client.run(run_id) for run_id in ("finished", "failed")]
    for run, last in zip(runs, (0.03, 0.02), strict=True):
        run.metrics.update({"frac_dead": last, "frac_dense": last, "fvu": last})
    best = {name: BestValue(value=0.0, step=5) for name in ("frac_dead", "frac_dense", "fvu")}
    found = workbench.client.compare(["finished", "failed"], max_points=5)
    found = found.model_copy(update={"runs": runs, "best": [best, best]})
    rows = metrics_table(found).split("<tr>")
    assert [sum("best" in row for row in rows if METRICS[name].title in row) for name in best] == [
        0,
        0,
        1,
    ]


@pytest.mark.parametrize("part", ["training", "features", "tokens"])
def test_a_run_compared_with_itself_is_one_run(open_page: Open, part: str) -> None:
    app = open_page("compare", runs="finished,finished", part=part)
    assert not app.exception
    assert "Choose two or more runs" in shown(app)


def test_names_of_compared_runs_are_text(open_page: Open) -> None:
    text = shown(open_page("compare", **ALL))
    assert ESCAPED in text
    assert "<script" not in text
