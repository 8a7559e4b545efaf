"""The mutants of `scripts/mutants`: each still breaks what it says, and the checkout is left alone."""

import ast
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mutant_table import MUTANTS, Mutant
from tests.mutants import ROOT, applied, problem_of


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks)
def test_a_mutant_changes_one_place(mutant: Mutant) -> None:
    """Its text is there once, what takes its place is Python, and the tests that are to notice it exist."""
    assert problem_of(mutant) == ""
    before = (ROOT / "brokerfl" / mutant.file).read_text()
    assert ast.dump(ast.parse(before.replace(mutant.old, mutant.new))) != ast.dump(ast.parse(before))


def test_a_mutant_is_undone(tmp_path: Path) -> None:
    """However the block ends; and the text that was compiled from it is told apart from the one before."""
    path = tmp_path / "brokerfl" / MUTANTS[0].file
    path.parent.mkdir(parents=True)
    path.write_text(MUTANTS[0].old)
    stat = path.stat()
    with suppress(KeyboardInterrupt), applied(MUTANTS[0], tmp_path):
        assert path.read_text() == MUTANTS[0].new
        assert int(path.stat().st_mtime) != int(stat.st_mtime)
        raise KeyboardInterrupt
    assert path.read_text() == MUTANTS[0].old
    assert path.stat().st_mtime_ns == stat.st_mtime_ns


def test_mutants_have_names_of_their_own() -> None:
    """What is printed says which one it was."""
    assert len({mutant.breaks for mutant in MUTANTS}) == len(MUTANTS)
