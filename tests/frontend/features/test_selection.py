"""Stars and labels: filtered by, shown wherever a feature's number stands, changed many at once."""

from __future__ import annotations

import re

import pytest

from backend import store
from frontend.features.details import nearest_features
from frontend.html.marks import mark
from sae_engine.schema.features import Neighbour
from sae_engine.schema.labels import LabelUpdate
from tests.frontend.samples import ESCAPED, NASTY
from tests.frontend.views.test_pages import Open, shown
from tests.frontend.workbench import Workbench


def listed(html: str) -> list[int]:
    """The features of the list, in order."""
    return [
        int(index) for index in re.findall(r'class="wb-name" href="feature\?[^"]*">(\d+)', html)
    ]


def written(workbench: Workbench) -> dict[int, tuple[str, bool]]:
    with workbench.services.database.reading() as session:
        marks = store.written_labels(session, "finished")
    return {feature: (each.label, each.starred) for feature, each in marks.items()}


def write(workbench: Workbench, feature: int, label: str, *, starred: bool) -> None:
    with workbench.writing() as session:
        store.set_label(session, "finished", feature, LabelUpdate(label=label, starred=starred))


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({"mark": "starred"}, [3, 8]),
        ({"mark": "labeled"}, [3, 7]),
        ({"mark": "starred", "q": "#8"}, [8]),
        ({"mark": "nonsense", "q": "#9"}, [9]),
    ],
)
def test_the_address_holds_which_marks_are_listed(
    open_page: Open, workbench: Workbench, query: dict[str, str], wanted: list[int]
) -> None:
    write(workbench, 7, "seven", starred=False)
    write(workbench, 8, "", starred=True)
    assert listed(shown(open_page("features", id="finished", sort="index", **query))) == wanted


def test_the_starred_features_come_first_when_the_list_is_sorted_by_star(open_page: Open) -> None:
    html = shown(open_page("features", id="finished", sort="starred"))
    assert listed(html)[:3] == [3, 0, 1]
    assert 'data-act="unstar 3"' in html
    assert 'data-act="star 0"' in html


def test_picked_features_are_starred_and_labeled_at_once(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("features", id="finished", sort="index", pick="3,5,x")
    assert "2 features selected" in shown(app)
    app.button(key="picked-star").click().run()
    app.text_input(key="picked-label").set_value(" both ").run()
    app.button(key="picked-set").click().run()
    assert written(workbench) == {3: ("both", True), 5: ("both", True)}
    app.button(key="picked-unstar").click().run()
    assert written(workbench) == {3: ("both", False), 5: ("both", False)}
    app.button(key="picked-clear").click().run()
    assert "pick" not in app.query_params
    assert "features selected" not in shown(app)


def test_the_box_of_a_page_picks_all_its_features_and_drops_only_those(open_page: Open) -> None:
    html = shown(open_page("features", id="finished", sort="index", pick="400", q="args"))
    here = listed(html)
    found = re.search(r'data-set="pick=([^"]*)"', html)
    assert found is not None
    picks = found[1].replace("%2C", ",")
    assert picks == ",".join(map(str, [400, *here]))
    assert f'data-set="pick={400}"' in shown(
        open_page("features", id="finished", sort="index", pick=picks, q="args")
    )


def test_a_label_and_a_star_stand_in_the_heading_and_beside_neighbors(open_page: Open) -> None:
    head = shown(open_page("feature", id="finished", index="3"))
    assert f'aria-label="Starred" title="Starred">★</span> <span class="wb-named">{ESCAPED}' in head
    near = Neighbour(
        index=4, cosine=0.91, label=NASTY, starred=True, top_tokens=["a", " b", "c", "d"]
    )
    html = nearest_features("run", [near], None)
    assert ESCAPED in html
    assert "wb-star" in html
    assert html.count('class="wb-chip"') == 3
    assert "What do 0.3 and 0.9 mean?" in html


def test_a_feature_without_marks_shows_none() -> None:
    assert mark(None, starred=False) == mark("", starred=False) == ""
    assert "★" not in mark("x", starred=False)


@pytest.mark.parametrize(
    ("page", "query"),
    [
        ("playground", {"id": "finished", "text": "import os", "lock": "3"}),
        ("playground", {"id": "finished", "steer": "3:1"}),
        ("compare", {"runs": "finished,failed", "part": "features", "threshold": "0"}),
    ],
)
def test_other_pages_show_the_star_too(open_page: Open, page: str, query: dict[str, str]) -> None:
    assert 'class="wb-star"' in shown(open_page(page, **query))
