"""The screen of `brokerfl top`: it tells the truth, whatever its size."""

import re
from dataclasses import replace

import pytest

from brokerfl.cli.picture import Chosen, Order, Page, Picture, all_of, moved, nodes_of, runs_of, seen
from brokerfl.cli.screen import frame
from brokerfl.view.overview import Overview
from brokerfl.view.reasons import NodeState, RunState
from tests.views import node_view, overview_of, run_view

SIZES = [(80, 24), (200, 50), (40, 12), (120, 13)]

WHY = "site-7 (7) busy 11m48s, usually 31s, and this sentence goes on for longer than a small screen is wide"


def busy() -> Overview:
    """Thirty runs, of which the last one is stuck, and a hundred nodes, of which the last two are late and lost."""
    runs = [run_view(10**18 + run * 10**14, f"run {run}") for run in range(29)]
    nodes = [node_view(100 + node, f"site-{node}", NodeState.TRAINING) for node in range(98)]
    late, lost = node_view(7, "site-late", NodeState.LATE), node_view(8, "site-lost", NodeState.LOST)
    return overview_of([*runs, run_view(77, "stuck one", RunState.STUCK, WHY)], [*nodes, late, lost])


def picture(**changes: object) -> Picture:
    return seen(replace(Picture("redis://host"), **changes), busy(), "")  # type: ignore[arg-type]


def text(shown: Picture, size: tuple[int, int]) -> list[str]:
    return [line.plain for line in frame(shown, *size)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", Page)
def test_it_fills_the_screen_and_no_more(size: tuple[int, int], page: Page) -> None:
    """As many lines as there are, none of them longer."""
    lines = frame(replace(picture(), page=page), *size)
    assert len(lines) == size[1]
    assert max(line.cell_len for line in lines) <= size[0]


@pytest.mark.parametrize("size", SIZES)
def test_the_worst_stands_first_and_nothing_is_hidden_silently(size: tuple[int, int]) -> None:
    """All runs and nodes are counted by state; rows that have no room are counted too."""
    lines = text(picture(), size)
    assert lines[1].startswith("runs 30: 29 running · 1 stuck")
    stuck, lost = (
        lines.index(next(line for line in lines if "77" in line)),
        next(at for at, line in enumerate(lines) if line.startswith(" site-lost")),
    )
    assert lines[stuck - 1].startswith(" RUN")
    assert lines[lost - 1].startswith(" NODE")
    rows = sum(1 for line in lines if re.match(r"[ >](77 |10\d\d…|site-)", line))
    hidden = [int(each) for line in lines for each in re.findall(r"^ … (\d+) more", line)]
    assert rows + sum(hidden) == 130


@pytest.mark.parametrize("size", SIZES)
def test_the_selected_row_is_always_there(size: tuple[int, int]) -> None:
    """Arrow keys go through all runs and nodes, and stop at the ends."""
    shown = picture()
    for chosen in all_of(shown):
        assert shown.chosen == chosen
        assert sum(line.startswith(">") for line in text(shown, size)) == 1
        shown = moved(shown, 1)
    assert moved(shown, 1).chosen == shown.chosen == all_of(shown)[-1]


def test_all_of_the_reason_stands_below() -> None:
    """The sentence of the selected run, as far as the screen is wide."""
    assert text(picture(), (80, 24))[-2].startswith("77 site-7 (7) busy 11m48s")
    assert WHY in text(picture(), (200, 50))[-2]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_wrong_with_redis_is_never_left_out(size: tuple[int, int]) -> None:
    """That it is full, or away, however narrow the screen is; when it is away, the rest is grey."""
    overview = replace(picture(), overview=overview_of([], [], used=399 * 2**20))
    assert "399M/400M FULL" in text(overview, size)[0]
    away = frame(replace(picture(), away="for 12s: Redis does not answer"), *size)
    assert away[0].plain.startswith(("brokerfl top", "redis_away", "redis://host"))
    assert "redis_away: for 12s" in away[0].plain
    assert all(any("dim" in str(span.style) for span in line.spans) for line in away[2:6] if line.plain)


def test_before_the_first_look() -> None:
    """There is nothing to show, and Redis may be away."""
    assert [line.plain for line in frame(Picture("redis://host"), 80, 24)] == ["brokerfl top  redis://host", "…"]
    assert "no answer" in frame(Picture("redis://host", away="no answer for 4s"), 80, 24)[-1].plain


def test_orders_and_failures() -> None:
    """By state, by age, by errors; and only what is not well."""
    few = picture(failures_only=True)
    assert [run.run_id for run in runs_of(few)] == [77]
    assert [node.info.name for node in nodes_of(few)] == ["site-lost", "site-late"]
    assert few.chosen == Chosen("run", 77)
    assert [node.info.name for node in nodes_of(picture(order=Order.AGE))][-2:] == ["site-late", "site-lost"]
    old, bad = run_view(5), run_view(6)
    assert old.run is not None
    old = replace(old, run=replace(old.run, created_at=1.0))
    bad = replace(bad, status=replace(bad.status, errors=99))
    both = Picture("", overview_of([run_view(4), bad, old], []))
    assert [run.run_id for run in runs_of(replace(both, order=Order.AGE))] == [5, 4, 6]
    assert [run.run_id for run in runs_of(replace(both, order=Order.ERRORS))] == [6, 4, 5]


def test_details_of_what_is_no_longer_there() -> None:
    """A run that ended while somebody looks at it says so."""
    gone = seen(replace(picture(), page=Page.DETAILS, chosen=Chosen("node", 12345)), busy(), "")
    assert "It is no longer there." in text(gone, (80, 24))
    assert any(line.startswith("node        7") for line in text(replace(gone, chosen=Chosen("node", 7)), (80, 24)))


def test_a_page_scrolls_to_its_end_and_no_further() -> None:
    """The last lines stay on the screen however often the key is pressed."""
    shown = replace(picture(), page=Page.DETAILS)
    for _ in range(50):
        shown = moved(shown, 1)
    lines = text(shown, (40, 12))
    assert any(line.startswith("memory") for line in lines)
