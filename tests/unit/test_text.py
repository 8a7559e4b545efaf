"""What others wrote, on the operator's terminal: nothing in it is obeyed, cut or an error."""

import io
import sys
from logging import WARNING

import pytest

from brokerfl.broker.process import describe
from brokerfl.cli.tables import show
from brokerfl.common import log
from brokerfl.common.text import shown

#: What a terminal would obey, and how it is shown.
EVIL = {
    "\033[2J": "\\x1b[2J", "a\nb": "a\\nb", "a\rb": "a\\rb", "\x9b31m": "\\x9b31m", "\x07": "\\x07", "\x7f": "\\x7f",
    "\u2028": "\\u2028", "\u202eabc": "\\u202eabc", "\ud800": "\\ud800", "\u2066x": "\\u2066x", "\0": "\\x00",
}  # fmt: skip


@pytest.mark.parametrize("text", EVIL)
def test_control_characters_are_escaped(text: str) -> None:
    """Escape sequences, line breaks and turned directions are shown; other text is left as it is."""
    assert shown(text) == EVIL[text]
    assert shown("ä 模型 [bold] \\") == "ä 模型 [bold] \\"
    assert shown("a\nb\033", keep="\n") == "a\nb\\x1b"


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_tables_show_all_of_it(text: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is one line with its whole id, in whatever encoding, beside a name of any length."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    node = "18446744073709551615"
    rows = [
        {"node": node, "name": text, "labels": {"k": text}},
        {"node": node, "name": "模" * 20_000, "labels": {}},
    ]
    show(rows, "table", "nothing")
    sys.stdout.flush()
    _, *lines = out.getvalue().decode(encoding).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(node) for line in lines)
    assert EVIL[text] in lines[0]


def test_logs_obey_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """An escape sequence in a log line is shown; the lines of a traceback stay."""
    log(WARNING, "from %s", "\033]0;title\007\nnext\tcolumn")
    assert capsys.readouterr().err == "WARNING :   from \\x1b]0;title\\x07\nnext\tcolumn\n"


def test_a_holder_is_one_line() -> None:
    """Who holds a lease says so himself."""
    assert describe("host\n\033[2J/1\r/2") == "process 1\\r on host\\n\\x1b[2J"
