"""The log: its format, its stream, and that it prints once."""

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from logging import CRITICAL, DEBUG, ERROR, INFO, WARNING
from pathlib import Path

import pytest

from brokerfl.common import configure_logging, log
from brokerfl.common.log_context import log_context, name_node, name_realms
from brokerfl.common.logger import ConsoleHandler, is_tracing, trace


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_configured_at_first() -> Iterator[None]:
    """Each test starts with the handler as it is after the import, and leaves it so."""
    configure_logging()
    yield
    configure_logging()


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (INFO, "INFO :      Starting server round 1\n"),
        (WARNING, "WARNING :   Starting server round 1\n"),
        (ERROR, "ERROR :     Starting server round 1\n"),
        (CRITICAL, "CRITICAL :  Starting server round 1\n"),
    ],
)
def test_format(level: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines look as Flower's do, with messages of all levels in one column, on standard error."""
    log(level, "Starting server round %s", 1)
    assert capsys.readouterr() == ("", line)


def test_level(capsys: pytest.CaptureFixture[str]) -> None:
    """DEBUG is printed only after configure_logging(DEBUG), and INFO not after configure_logging(ERROR)."""
    log(DEBUG, "first")
    configure_logging(DEBUG)
    log(DEBUG, "second")
    configure_logging(ERROR)
    log(INFO, "third")
    assert capsys.readouterr().err == "DEBUG :     second\n"


def test_stream_is_looked_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line goes to what sys.stderr is when it is logged; where there is none, nowhere."""
    for text in ("one", "two"):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        log(INFO, text)
        assert stream.getvalue() == f"INFO :      {text}\n"
    monkeypatch.setattr(sys, "stderr", None)
    log(INFO, "three")


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets the level in colour; with NO_COLOR, or when it is no terminal, there are only the letters."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    printed = []
    for stream in (Terminal(), io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        log(INFO, "text")
        printed.append(stream.getvalue())
        monkeypatch.setenv("NO_COLOR", "" if len(printed) < 2 else "1")
    assert printed == [
        "\033[92mINFO \033[0m:      text\n",
        "INFO :      text\n",
        "INFO :      text\n",
    ]


def test_timestamps(capsys: pytest.CaptureFixture[str]) -> None:
    """With timestamps: local time in milliseconds, the level in a column, and the ids after the first line."""
    configure_logging(timestamps=True)
    name_node(6239018, "site-7")
    with log_context(run=1141092, node=6239018, message="3f2a91c0" * 4):
        log(INFO, "text\nmore")
    log(WARNING, "text")
    first, more, second = capsys.readouterr().err.splitlines()
    assert first[23:] == " INFO     text [run 1141… node site-7 message 3f2a91c0…]"
    assert (more, second[23:]) == ("more", " WARNING  text")
    stamp = datetime.strptime(first[:23], "%Y-%m-%d %H:%M:%S.%f")
    assert abs((datetime.now() - stamp).total_seconds()) < 60


def test_ids_are_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """What the message names with its whole id is not said again."""
    configure_logging(timestamps=True)
    with log_context(run=1141092, node=7312018):
        log(INFO, "Run %s of %s", 1141092, "server:app")
    assert capsys.readouterr().err.endswith("Run 1141092 of server:app [node 7312…]\n")


def test_runs_of_one_realm_are_told_apart(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All their ids begin with the same four digits, so four more are shown."""
    configure_logging(timestamps=True)
    monkeypatch.setattr("brokerfl.common.log_context._realms", set())
    name_realms(("", "9282"))
    for run in (9282402558839974796, 9282626525944304556, 1141092):
        with log_context(run=run):
            log(INFO, "text")
    assert re.findall(r"\[run (.*)\]", capsys.readouterr().err) == ["92824025…", "92826265…", "1141…"]


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With json each record is one line that parses, whatever the message holds; the keys are always there."""
    configure_logging(json=True, timestamps=True)
    log(WARNING, 'two\nlines and a "quote" %s', "é")
    name_node(2**63, "site-8")
    with log_context(run=2**64 - 1, node=2**63, message="3f2a"):
        log(INFO, "text")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert abs((datetime.now(UTC) - datetime.fromisoformat(first.pop("time"))).total_seconds()) < 60
    del second["time"]
    nothing = {"run": None, "node": None, "node_name": None, "message_id": None, "event": None}
    assert first == {"level": "WARNING", "logger": "brokerfl", "message": 'two\nlines and a "quote" é', **nothing}
    ids = {"run": str(2**64 - 1), "node": str(2**63), "node_name": "site-8", "message_id": "3f2a", "event": None}
    assert second == {"level": "INFO", "logger": "brokerfl", "message": "text", **ids}

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log(INFO, "text")
    assert json.loads(terminal.getvalue())["message"] == "text"


def test_arguments_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """The line is printed all the same, and shows the mistake."""
    log(INFO, "%d of %s", "one")
    assert capsys.readouterr().err == "INFO :      '%d of %s' % ('one',)\n"


def test_what_happens_to_each_message(capsys: pytest.CaptureFixture[str]) -> None:
    """It is logged at level DEBUG by a logger of its own, if somebody asks; it makes no record otherwise."""
    trace("answered", "Answered by %s", "somebody", run=1)
    assert not is_tracing()
    configure_logging(DEBUG, json=True)
    assert is_tracing()
    with log_context(node=5):
        trace("answered", "Answered by %s", "somebody", run=1, message_id="3f2a")
    configure_logging(INFO)
    trace("answered", "Answered", run=1)
    [line] = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"]) == ("DEBUG", "brokerfl.messages", "Answered by somebody")
    assert (told["event"], told["run"], told["node"], told["message_id"]) == ("answered", "1", "5", "3f2a")


def test_a_script_may_ask_what_happens_to_each_message(caplog: pytest.LogCaptureFixture) -> None:
    """As for any logger, by its level."""
    with caplog.at_level(DEBUG, "brokerfl.messages"):
        trace("answered", "Answered")
    trace("settled", "Settled")
    assert caplog.record_tuples == [("brokerfl.messages", DEBUG, "Answered")]


@pytest.mark.parametrize("as_json", [False, True])
def test_traceback(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """An exception given with a record is printed with it."""
    configure_logging(json=as_json)
    try:
        raise KeyError("lost")
    except KeyError:
        log(ERROR, "failed", exc_info=True)
    printed = capsys.readouterr().err
    assert "failed" in printed
    assert "KeyError: 'lost'" in printed
    assert len(printed.splitlines()) == 1 if as_json else len(printed.splitlines()) > 2


def test_other_levels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A level without a name of its own is printed, also in colour."""
    log(25, "text")
    assert capsys.readouterr().err == "Level 25 :  text\n"
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log(25, "text")
    assert "Level 25" in terminal.getvalue()


def test_prints_once(capsys: pytest.CaptureFixture[str]) -> None:
    """However often it is configured there is one handler, so a record is printed once."""
    configure_logging()
    configure_logging()
    handlers = logging.getLogger("brokerfl").handlers
    assert [type(handler) for handler in handlers] == [ConsoleHandler]
    log(INFO, "text")
    assert capsys.readouterr().err.count("text") == 1


def test_reaches_the_root_logger(caplog: pytest.LogCaptureFixture) -> None:
    """Records go up to the root logger, so that caplog and an application's own logging see them, DEBUG included."""
    log(DEBUG, "text %s", 1)
    assert caplog.record_tuples == [("brokerfl", DEBUG, "text 1")]


def test_a_broken_stream_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging to a stream that fails raises nothing."""
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    log(INFO, "text")


def printed(code: str) -> list[str]:
    """What a process prints to both streams that runs ``code`` and then logs at three levels."""
    after = (
        "from brokerfl.common import configure_logging, log\nfor level in (10, 20, 30): log(level, 'text %s', level)\n"
    )
    script = "import logging, logging.config, sys, brokerfl.common\n" + code + "\n" + after
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=30, capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()


OURS = ["INFO :      text 20", "WARNING :   text 30"]


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("logging.config.dictConfig({'version': 1})", OURS),
        ("logging.getLogger('brokerfl').disabled = True", OURS),
        ("logging.basicConfig()", ["INFO:brokerfl:text 20", "WARNING:brokerfl:text 30"]),
        ("logging.basicConfig(stream=sys.stdout, level=10)", ["INFO:brokerfl:text 20", "WARNING:brokerfl:text 30"]),
        (
            "logging.basicConfig(); logging.getLogger().handlers[0].setLevel(30)",
            ["WARNING:brokerfl:text 30", "INFO :      text 20"],
        ),
        (
            "from rich.logging import RichHandler\n"
            "logging.basicConfig(format='%(message)s', handlers=[RichHandler(show_time=False, show_path=False)])",
            ["INFO     text 20", "WARNING  text 30"],
        ),
        ("logging.getLogger().addHandler(logging.FileHandler('/dev/null'))", OURS),
        (
            "logging.raiseExceptions = False; handler = logging.Handler(); logging.getLogger().addHandler(handler)",
            OURS,
        ),
        (
            "logging.raiseExceptions = False\n"
            "for handler in (logging.Handler(), logging.StreamHandler()): logging.getLogger().addHandler(handler)",
            ["text 20", "text 30"],
        ),
        ("logging.getLogger('brokerfl').addFilter(lambda record: 1 / 0)", OURS),
        ("logging.setLogRecordFactory(lambda *arguments, **options: 1 / 0)", OURS),
        ("logging.setLogRecordFactory(lambda *arguments, **options: None)", OURS),
        ("logging.disable(logging.INFO)", OURS[1:]),
        ("logging.getLogger('brokerfl').setLevel(logging.WARNING)", OURS[1:]),
        ("logging.getLogger('brokerfl').addFilter(lambda record: record.levelno > 20)", OURS[1:]),
        ("logging.getLogger('brokerfl').handlers.clear()", []),
    ],
)
def test_an_applications_own_logging(code: str, lines: list[str]) -> None:
    """It does not silence the log, doubles no line, and what it raises ends nothing; its handlers print if they do."""
    assert sorted(line.rstrip() for line in printed(code)) == sorted(lines)


HOSTILE = [
    "logging.disable(logging.CRITICAL)",
    "logging.getLogger('brokerfl').handlers.clear()",
    "logging.getLogger('brokerfl').setLevel(logging.CRITICAL)",
    "logging.getLogger('brokerfl').propagate = False",
    "logging.getLogger('brokerfl').addFilter(lambda record: False)",
    "logging.getLogger('brokerfl').addFilter(lambda record: 1 / 0)",
    "logging.setLogRecordFactory(lambda *arguments, **options: 1 / 0)",
    "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': True})",
    "logging.basicConfig(force=True, level=0)",
    "logging.basicConfig(stream=sys.stdout, level=0)",
    "logging.getLogger('brokerfl').addHandler(logging.StreamHandler())",
    "logging.shutdown()",
    "sys.stderr = None",
    "sys.stderr.close()",
    "sys.stderr = sys.__stderr__ = io.StringIO()",
    "configure_logging(logging.CRITICAL, json=True)",
]


#: A process that forks for each of these, because it takes long to start.
FORKING = """
import io, json, logging, logging.config, os, sys
from pathlib import Path
from brokerfl.cli import logs
from brokerfl.common import configure_logging, log

folder = Path(sys.argv[1])
for number, code in enumerate(json.loads(sys.argv[2])):
    child = os.fork()
    if not child:
        output = os.open(folder / f"{number}.out", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        logs._begin(False, folder / f"{number}.log", 20)
        exec(code)
        for level in (10, 20, 30):
            log(level, "text %s", level)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, code
"""


def test_the_log_of_a_command(tmp_path: Path) -> None:
    """Console and file of a command have each line once, and no more, whatever the app does to the logging."""
    command = [sys.executable, "-c", FORKING, str(tmp_path), json.dumps(HOSTILE)]
    subprocess.run(command, check=True, timeout=30)
    for number, code in enumerate(HOSTILE):
        for kind in ("out", "log"):
            written = (tmp_path / f"{number}.{kind}").read_text().splitlines()
            assert [line[24:] for line in written] == ["INFO     text 20", "WARNING  text 30"], code


def test_other_handlers_of_a_command(tmp_path: Path) -> None:
    """A file of the app's own gets what its level and the logger's let through, also below the command's level."""
    script = f"""
import logging
import re
from brokerfl.cli import logs
from brokerfl.common import log
logs._begin(False, None, 20)
logging.basicConfig(filename={str(tmp_path / "own")!r}, level=10, format="%(message)s of %(run)s")
for level in (10, 20): log(level, "text %s", level)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30, capture_output=True)
    assert (tmp_path / "own").read_text() == "text 10 of None\ntext 20 of None\n"


def test_a_record_names_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    """A format with the file and the function shows where `log` was called."""
    log(INFO, "text")
    [record] = caplog.records
    assert (record.filename, record.funcName) == ("test_logger.py", "test_a_record_names_its_caller")


def test_library_import_leaves_others_alone() -> None:
    """Importing the package prints nothing and touches no logger but its own."""
    code = (
        "import logging, brokerfl.common\n"
        "assert not logging.getLogger().handlers and logging.getLogger().level == logging.WARNING\n"
        "assert len(logging.getLogger('brokerfl').handlers) == 1"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")
