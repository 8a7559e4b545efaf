"""What docs/commands.md says of JSON, states and reasons is what the commands print."""

import re
from datetime import datetime
from pathlib import Path

import pytest

from brokerfl.view.reasons import NodeState, Reason, RunState
from brokerfl.view.shape import node_to_json, run_to_json
from tests.views import NOW, node_view, run_view

PAGE = (Path(__file__).parent.parent.parent / "docs" / "commands.md").read_text()

#: Python's types of what the page calls a type.
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "number": (int, float), "boolean": (bool,), "list": (list,), "object": (dict,),
}  # fmt: skip

EVERYTHING = run_view(1111222233334444, "mnist", RunState.STUCK, "site-7 busy")


def table(title: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell, without its backquotes."""
    rows = re.search(rf"^\| {title} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert rows is not None
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[1].splitlines()]
    return {first.strip("` "): rest for first, *rest in cells}


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("state of a run", [*RunState]),
        ("state of a node", [*NodeState]),
        ("reason of a run", [each for each in Reason if each]),
    ],
)
def test_the_closed_lists(title: str, words: list[str]) -> None:
    """The page has them all, in order, and no other."""
    assert [*table(title)] == words


@pytest.mark.parametrize(
    ("title", "records"),
    [
        ("key of a run", [
            run_to_json(EVERYTHING, NOW), run_to_json(run_view(5), NOW),
            run_to_json(run_view(6, state=RunState.COMPLETED, ended=NOW - 9), NOW),
        ]),
        ("key of a node", [node_to_json(node_view(7, "n", state), NOW) for state in NodeState]),
    ],
)  # fmt: skip
def test_json_has_the_keys_that_are_documented(title: str, records: list[dict[str, object]]) -> None:
    """All of them, always, and of the type that the page says."""
    documented = table(title)
    for record in records:
        assert [*record] == [*documented]
        for key, value in record.items():
            kind, _, null = documented[key][0].partition(" or ")
            if value is None:
                assert null == "null", key
            elif kind == "time":
                assert datetime.fromisoformat(str(value)).tzinfo is not None, key
            else:
                assert isinstance(value, TYPES[kind]), key


def test_what_is_unknown_is_null() -> None:
    """Of a run of whose past nothing remains, all but three keys; of one that goes on, nothing that was said."""
    ended = run_to_json(run_view(6, state=RunState.STOPPED, ended=NOW - 9), NOW)
    known = {key for key, value in ended.items() if value not in (None, [], {})}
    assert known == {"run", "state", "ended", "why"}
    [waits_for] = run_to_json(EVERYTHING, NOW)["waiting_for"]
    assert (waits_for["node"], waits_for["name"], waits_for["seconds"]) == ("7", "site-7", 50.0)
