"""The log of a command: what is damped, and what its end says."""

import logging
import subprocess
import sys
from logging import DEBUG, INFO, LogRecord
from pathlib import Path

import brokerfl
from brokerfl.common.damper import Damper
from brokerfl.common.kept_log import KeptLog
from brokerfl.common.layout import identify

OURS = Path(brokerfl.__file__).parent


class Listed(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.said: list[str] = []

    def emit(self, record: LogRecord) -> None:
        self.said.append(record.getMessage())


def record(path: Path, event: str | None = None, level: int = INFO) -> LogRecord:
    made = LogRecord("brokerfl", level, str(path), 1, "text", (), None)
    made.__dict__["event"] = event
    identify(made)
    return made


def test_only_lines_of_brokerfl_are_damped() -> None:
    """An app's line, also that of an example, and what happens to a message are printed each time."""
    handler, debug = Listed(INFO), Listed(DEBUG)
    kept = KeptLog([handler, debug], lambda say: Damper(say, 1e6))
    assert [kept.take(record(OURS / "server" / "wait.py")) for _ in range(3)] == [True, False, False]
    for path in (OURS / "examples" / "digits" / "server.py", Path("/apps/server.py"), Path("(unknown file)")):
        assert [kept.take(record(path)) for _ in range(2)] == [True, True]
    assert all(kept.take(record(OURS / "server" / "steps.py", "answered", DEBUG)) for _ in range(2))
    kept.finish()
    assert handler.said == ["text"] * 7 + ["text … repeated 2 times in 1 s"]
    assert len(debug.said) == len(handler.said) + 2


def ends(how: str) -> list[str]:
    """What a process says whose log repeats a line, and that ends in some way."""
    script = (
        "from logging import LogRecord\nfrom brokerfl.cli import logs, signals\nfrom brokerfl.common import logger\n"
        "logs._begin(False, None, 20)\n"
        f"record = LogRecord('brokerfl', 20, {str(OURS / 'x.py')!r}, 1, 'text', (), None)\n"
        f"for _ in range(3): logger.logger.handle(record)\n{how}"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=30, capture_output=True, text=True, check=False)
    return [line[24:] for line in done.stderr.splitlines()]


def test_the_end_says_what_was_counted() -> None:
    """Both an end as usual and the one by a second signal."""
    expected = ["INFO     text", "INFO     text … repeated 2 times in 1 s"]
    assert ends("") == expected
    assert ends("signals.leave(15)") == expected
