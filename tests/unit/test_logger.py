"""The log: its format, its stream, and that it prints once."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from logging import CRITICAL, DEBUG, ERROR, INFO, WARNING

import pytest

from brokerfl.common import configure_logging, log
from brokerfl.common.logger import ConsoleHandler


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
    """With timestamps the local time stands between the level and the colon."""
    configure_logging(timestamps=True)
    log(INFO, "text")
    level, day, clock, text = capsys.readouterr().err.split(maxsplit=3)
    assert (level, text) == ("INFO", "text\n")
    assert clock.endswith(":")
    stamp = datetime.strptime(f"{day} {clock}", "%Y-%m-%d %H:%M:%S,%f:")
    assert abs((datetime.now() - stamp).total_seconds()) < 60


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With json each record is one line that parses, whatever the message holds."""
    configure_logging(json=True, timestamps=True)
    log(WARNING, 'two\nlines and a "quote" %s', "é")
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["level"], record["message"]) == ("WARNING", 'two\nlines and a "quote" é')
    assert abs((datetime.now(UTC) - datetime.fromisoformat(record["time"])).total_seconds()) < 60

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log(INFO, "text")
    assert json.loads(terminal.getvalue())["message"] == "text"


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
        ("logging.getLogger('brokerfl').addFilter(lambda record: 1 / 0)", []),
    ],
)
def test_an_applications_own_logging(code: str, lines: list[str]) -> None:
    """It does not silence the log, doubles no line, and what it raises ends nothing; its handlers print if they do."""
    assert sorted(line.rstrip() for line in printed(code)) == sorted(lines)


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
