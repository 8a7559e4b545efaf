"""Files and directories of a node are this user's alone: no link is followed, no other user reads or owns them."""

import os
import stat
from pathlib import Path

import pytest

from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.cli import options
from brokerfl.client.folder import Folder
from brokerfl.client.journal import Journal
from brokerfl.client.running import RunningFile
from brokerfl.common import ConfigError, JournalError
from brokerfl.common.lockfile import LockFile
from brokerfl.common.private import NotOursError, open_private, private_directory

REDIS = b"redis"


def mode(path: Path) -> int:
    """The rights of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    "name", ["lock", "home.new", f"{REDIS.hex()}.db", f"{REDIS.hex()}.running", f"{REDIS.hex()}.db-wal"]
)
def test_a_journal_follows_no_link(tmp_path: Path, name: str) -> None:
    """A link where one of its files should be leads to an error that names it; the target stays as it was."""
    target, folder = tmp_path / "target", tmp_path / "node"
    target.write_text("precious")
    folder.mkdir(mode=0o700)
    (folder / name).symlink_to(target)
    with pytest.raises(JournalError, match=f"{name} is a symbolic link"):
        Journal(folder).open(REDIS)
    assert target.read_text() == "precious"


def test_a_folder_follows_no_link(tmp_path: Path) -> None:
    """The directory itself is no link either."""
    (tmp_path / "target").mkdir()
    (tmp_path / "node").symlink_to(tmp_path / "target")
    with pytest.raises(JournalError, match="node is a symbolic link"):
        Folder(tmp_path / "node")
    assert not list((tmp_path / "target").iterdir())


def test_what_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    """A directory and files that were made with other rights get 0700 and 0600."""
    folder = tmp_path / "node"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / f"{REDIS.hex()}.db").touch(mode=0o644)
    (folder / "lock").touch(mode=0o666)
    journal = Journal(folder)
    journal.open(REDIS)
    assert mode(folder) == 0o700
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    journal.close()


def test_what_belongs_to_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns a file can give it back its rights."""
    folder = tmp_path / "node"
    folder.mkdir()
    (folder / "lock").touch()
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with pytest.raises(JournalError, match="belongs to another user: name another state directory"):
        Folder(folder)
    with pytest.raises(NotOursError, match="belongs to another user"):
        LockFile(folder / "lock")
    with pytest.raises(ConfigError, match="belongs to another user: name another directory with --data"):
        EmbeddedServer(data=folder).start()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe waits for nobody, and a file is no directory."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotOursError, match="is not a file"):
        open_private(tmp_path / "pipe")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        private_directory(tmp_path / "file")


def test_a_data_directory_is_no_link(tmp_path: Path) -> None:
    """What `brokerfl up` keeps is private too."""
    (tmp_path / "target").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="data is a symbolic link: name another directory with --data"):
        EmbeddedServer(data=tmp_path / "data").start()


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_url_file_that_all_can_read_warns(
    tmp_path: Path, mode: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds a password; the group may be meant, as with a secret that is mounted."""
    file = tmp_path / "url"
    file.write_text("redis://:secret@host")
    file.chmod(mode)
    assert options._read_url(str(file)) == "redis://:secret@host"
    assert ("can read the URL file" in caplog.text) == warned
    assert "secret" not in caplog.text


def test_a_record_is_not_longer_than_a_record(tmp_path: Path) -> None:
    """An id that would reach into the record of another worker is refused."""
    running = RunningFile(tmp_path / "running")
    running.note("1 " + "a" * 32, worker=1)
    for text in ("7 " + "b" * 63, "7 " + "\u00b2" * 32):
        with pytest.raises(ValueError, match="not the ids"):
            running.note(text)
    assert running.read() == [("1", "a" * 32)]
    running.close()
