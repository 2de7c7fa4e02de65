"""The list of runs: filtered, sorted, marked, archived; and all runs as points."""

from __future__ import annotations

import re

import pytest
from streamlit.testing.v1 import AppTest

from frontend.runs.list import sweep_name
from tests.frontend.samples import ESCAPED, make_run
from tests.frontend.views.test_overview import only_plot
from tests.frontend.views.test_pages import Open, address, button_link, followed, shown
from tests.frontend.workbench import Workbench


def order_of(app: AppTest) -> list[str]:
    """Ids of the runs from the top of the table to its bottom."""
    return re.findall(r'class="wb-name" href="run\?id=(\w+)"', shown(app))


def test_a_tag_is_shown_links_to_its_runs_and_filters(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.patch("failed", tags=["k <study>"])
    app = open_page("runs")
    assert '<a class="wb-tag" href="./?tag=k+%3Cstudy%3E">k &lt;study&gt;</a>' in shown(app)
    assert app.selectbox(key="url:tag").options == ["Any tag", "k <study>"]
    app.selectbox(key="url:tag").set_value("k <study>").run()
    assert order_of(app) == ["failed"]
    assert order_of(open_page("runs", tag="k <study>")) == ["failed"]


def test_a_heading_sorts_and_reverses_its_own_order(open_page: Open) -> None:
    app = open_page("runs")
    assert order_of(app) == ["live", "failed", "finished"]
    assert 'data-set="sort=name&amp;order=&amp;cursor="' in shown(app)
    app = open_page("runs", sort="name")
    assert order_of(app) == ["live", "failed", "finished"]  # live, lr, tiny
    assert 'data-set="sort=name&amp;order=desc&amp;cursor="' in shown(app)
    assert "Run ↑" in shown(app)
    assert order_of(open_page("runs", sort="name", order="desc")) == ["finished", "failed", "live"]


def test_archived_runs_have_their_own_list(open_page: Open, workbench: Workbench) -> None:
    workbench.patch("failed", archived=True)
    app = open_page("runs")
    assert order_of(app) == ["live", "finished"]
    app.toggle(key="url:archived").set_value(True).run()
    assert order_of(app) == ["failed"]


def test_no_welcome_is_shown_when_all_runs_are_archived(
    open_page: Open, workbench: Workbench
) -> None:
    for run_id in workbench.runs:
        workbench.patch(run_id, archived=True)
    assert "No runs yet" not in shown(open_page("runs"))


def test_marks_are_kept_in_the_address_and_enable_actions(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("runs", pick="live")
    assert button_link(app, "Compare").proto.disabled
    assert '<a class="wb-check on" href="?" data-toggle="pick" data-value="live"' in shown(app)
    assert '<a class="wb-check" href="?" data-toggle="pick" data-value="finished"' in shown(app)
    app = open_page("runs", pick="live,finished")
    assert "3 runs · 2 selected" in shown(app)
    followed(app, "Compare")
    assert address(app, "runs") == "live,finished"
    app = open_page("runs", pick="failed,finished")
    app.button(key="archive-picked").click().run()
    assert {i for i, run in workbench.runs.items() if run.archived} == {"failed", "finished"}
    assert "pick" not in app.query_params


def test_a_long_list_says_how_many_runs_it_shows_and_has_pages(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.add(*(f"more{number}" for number in range(60)))
    app = open_page("runs")
    assert "50 of 63 runs" in shown(app)
    app.button(key="page-on").click().run()
    assert order_of(app)[-1] == "finished"
    assert len(order_of(app)) == 13


def test_alerts_are_counted_and_named(open_page: Open, workbench: Workbench) -> None:
    workbench.alert("live", "divergence", "disk")
    assert 'title="diverging, disk low">2 alerts</span>' in shown(open_page("runs"))


def test_a_sweep_has_one_heading_over_its_runs(open_page: Open, workbench: Workbench) -> None:
    for run_id, name in (("failed", "trial k=16"), ("live", "trial k=32")):
        workbench.change(run_id, group_id="g7", name=name)
    text = shown(open_page("runs"))
    assert text.count('<a class="wb-sweepname" href="sweep?id=g7">trial</a>') == 1
    assert 'class="wb-sweepname"' not in shown(open_page("runs", sort="name"))


@pytest.mark.parametrize(
    ("member", "sweep"),
    [
        ("tiny k=16 model.layer=2", "tiny"),
        ("a b lr=0.0001", "a b"),
        ("renamed", "renamed"),
        (" k=16", " k=16"),
    ],
)
def test_a_sweeps_name_is_its_members_name_without_the_varied_settings(
    member: str, sweep: str
) -> None:
    assert sweep_name(make_run(name=member)) == sweep


def cells(app: AppTest, run_id: str) -> list[str]:
    """The text of a run's cells after its name."""
    [row] = [row for row in shown(app).split("<tr") if f'href="run?id={run_id}"' in row]
    return [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)][2:]


def test_any_setting_or_metric_can_be_a_column(open_page: Open, workbench: Workbench) -> None:
    workbench.configure("finished", "sae", k=7)
    app = open_page("runs", columns="sae.k,model.name,eval_l0,nonsense,data.mixture")
    assert cells(app, "finished") == ["7", "tiny-gemma2", "31.4", "–"]
    assert "<code>sae.k</code>" in shown(app)
    app.multiselect(key="chosen-columns").set_value(["status", "train.lr_schedule"]).run()
    assert address(app, "columns") == "status,train.lr_schedule"
    assert cells(app, "finished") == ["finished ", "linear_decay"]
    app.button(key="usual-columns").click().run()
    assert "columns" not in app.query_params
    assert len(cells(app, "finished")) == 9


def test_runs_are_grouped_by_what_they_share_across_all_pages(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.add(*(f"more{number}" for number in range(60)))
    workbench.configure("failed", "sae", k=7)
    app = open_page("runs", group="k")
    titles = re.findall(r"<strong>(k \d+)</strong> (\d+) runs?( · best FVU [\d.]+)?", shown(app))
    assert titles == [("k 16", "62", " · best FVU 0.285"), ("k 7", "1", " · best FVU 0.480")]
    assert order_of(app)[-1] == "failed"
    assert len(order_of(app)) == 63
    app.selectbox(key="url:group").set_value("status").run()
    assert address(app, "group") == "status"
    assert "<strong>finished</strong> 61 runs" in shown(app)


def test_a_group_or_a_page_is_selected_at_once(open_page: Open, workbench: Workbench) -> None:
    workbench.configure("failed", "sae", k=7)
    text = shown(open_page("runs", group="k", pick="failed"))
    assert 'data-set="pick=failed%2Clive%2Cfinished"' in text  # the group k 16, and all
    assert 'data-set="pick="' in text  # deselects the group k 7


def test_selected_runs_are_stopped_or_deleted_as_their_states_allow(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("runs", pick="live,finished,gone")
    app.button(key="stop-picked").click().run()
    assert not app.exception
    assert workbench.runs["live"].status == "stopping"
    assert workbench.runs["finished"].status == "finished"
    app.button(key="delete-picked-sure").click().run()
    assert set(workbench.runs) == {"live", "failed"}
    assert "pick" not in app.query_params


def test_all_matching_runs_are_points_that_open_them(open_page: Open) -> None:
    app = open_page("runs", view="pareto")
    plot = only_plot(app)
    [marks] = [trace for trace in plot["figure"]["data"] if trace["uid"] == "runs"]
    assert "finished" in marks["customdata"]
    assert plot["opens"] == "run?id="
    assert all("<script" not in text for text in marks["hovertext"])
    assert ESCAPED not in shown(app)
