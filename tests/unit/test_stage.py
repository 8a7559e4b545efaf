"""The tests themselves: helpers are in stage modules, and one place reaches into a Driver or a Node."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent.parent

MODULES = sorted(TESTS.rglob("*.py"))

#: The only module that may reach into a Driver or a Node.
STAGE = TESTS / "stage.py"

#: What tests call Drivers and Nodes.
INSIDE = re.compile(r"\b(driver|former|first|second|node|nodes\[\d\])\._[a-z]")


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports from, also those that it imports as names of a package."""
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def test_no_test_imports_from_a_test() -> None:
    """What two test modules need is in a stage module, a conftest or another module without tests."""
    found = {
        f"{path.relative_to(TESTS)} imports {name}"
        for path in MODULES
        for name in imported(path)
        if re.match(r"tests\.(.*\.)?test_", name)
    }
    assert found == set()


def test_one_place_reaches_into_drivers_and_nodes() -> None:
    """No test knows how a Driver or a Node keeps what it keeps; ``tests/stage.py`` does."""
    found = [
        f"{path.relative_to(TESTS)}:{number}: {line.strip()}"
        for path in MODULES
        if path != STAGE
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if INSIDE.search(line)
    ]
    assert found == []
