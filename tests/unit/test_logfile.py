"""The log file: private, rotated, of one process, and no reason to end."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from logging import INFO, LogRecord
from pathlib import Path

import pytest

from brokerfl.common import ConfigError, logfile
from brokerfl.common.layout import text_of
from brokerfl.common.logfile import LogFile


def line(text: str) -> LogRecord:
    return LogRecord("brokerfl", INFO, __file__, 1, text, (), None)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def log_file(tmp_path: Path, told: list[str]) -> Iterator[LogFile]:
    made = LogFile(tmp_path / "node.log", lambda record, _: text_of(record), INFO, told.append)
    yield made
    made.close()
    made._lock_file.close()


def test_only_its_user_reads_it(log_file: LogFile, tmp_path: Path) -> None:
    """It has mode 600, as have its old files."""
    log_file.handle(line("text"))
    log_file.doRollover()
    log_file.handle(line("more"))
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == {"node.log": "more\n", "node.log.1": "text\n"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_old_files_go(log_file: LogFile, tmp_path: Path) -> None:
    """At the size that the documentation names the next file begins, and five old ones stay."""
    assert (logfile.MOST_BYTES, logfile.OLD_FILES) == (10_000_000, 5)
    log_file.maxBytes = 10
    for number in range(9):
        log_file.handle(line(f"text {number}"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "node.log" + (f".{age}" if age else ""): f"text {8 - age}\n" for age in range(6)
    }


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """One clear error names the file and what is wrong: no directory, a link, another process."""
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path, wrong in ((tmp_path / "none" / "log", "No such file or directory"), (tmp_path / "link", "symbolic link")):
        with pytest.raises(ConfigError, match=f"the log file {path} cannot be opened .*{wrong}"):
            LogFile(path, lambda *_: "", INFO)


@pytest.mark.parametrize("rotated", [False, True])
def test_one_process_writes_it(log_file: LogFile, rotated: bool) -> None:
    """A second one is refused, also after a rotation."""
    if rotated:
        log_file.handle(line("text"))
        log_file.doRollover()
    code = (
        "import sys\nfrom pathlib import Path\nfrom brokerfl.common.logfile import LogFile\n"
        "LogFile(Path(sys.argv[1]), lambda *_: '', 20)"
    )
    command = [sys.executable, "-c", code, log_file.baseFilename]
    done = subprocess.run(command, timeout=30, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("is in use by another process: each process needs a file of its own")


def test_a_fork_does_not_rotate_it(log_file: LogFile, tmp_path: Path) -> None:
    """Its lines go to the file that its parent writes."""
    log_file.maxBytes = 10
    log_file.handle(line("first"))
    child = os.fork()
    if not child:
        log_file.handle(line("the child's"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"node.log": "first\nthe child's\n"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_ends_nothing(log_file: LogFile, told: list[str], tmp_path: Path) -> None:
    """It is said once, and once that it is over; what is logged then is written."""
    descriptor = log_file.stream.fileno()
    kept, full = os.dup(descriptor), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    for number in range(3):
        log_file.handle(line(f"lost {number}"))
    assert [text.split("node.log ")[1] for text in told] == [
        "cannot be written (No space left on device); lines are lost until it can"
    ]
    os.dup2(kept, descriptor)
    log_file.handle(line("text"))
    assert told[1:] == [f"The log file {tmp_path / 'node.log'} is written again"]
    assert (tmp_path / "node.log").read_text().endswith("text\n")
    os.close(kept)
    os.close(full)


def test_a_rotation_that_fails(log_file: LogFile, told: list[str], tmp_path: Path) -> None:
    """It is said once, and the file grows."""
    log_file.maxBytes = 10
    (tmp_path / "node.log.4").touch()
    (tmp_path / "node.log.5").mkdir()
    for number in range(3):
        log_file.handle(line(f"text {number}"))
    assert (tmp_path / "node.log").read_text() == "text 0\ntext 1\ntext 2\n"
    assert len(told) == 1
    assert "cannot be rotated (" in told[0]
