"""Files and directories of a node are this user's alone: no link is followed, no other user reads or owns them."""

import errno
import os
import pwd
import resource
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.cli import place
from brokerfl.client.folder import Folder, default_state_dir
from brokerfl.client.journal import Answer, Journal
from brokerfl.client.running import RunningFile
from brokerfl.common import ConfigError, JournalError
from brokerfl.common.lockfile import LockFile
from brokerfl.common.private import (
    NotOursError,
    open_private,
    private_directory,
    read_private,
    read_unforged,
    write_private,
)
from tests.stage import execute

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


@pytest.mark.parametrize("rights", [0o755, 0o710, 0o702])
def test_a_directory_that_others_could_use_is_refused(tmp_path: Path, rights: int) -> None:
    """Others may have read what is in it, or put it there; an empty one is closed to them."""
    folder = tmp_path / "node"
    folder.mkdir()
    folder.chmod(rights)
    private_directory(folder)
    assert mode(folder) == 0o700
    (folder / "lock").touch()
    folder.chmod(rights)
    with pytest.raises(JournalError, match=rf"its mode is 0{rights:o}, not 0700\): name another state directory"):
        Journal(folder)
    with pytest.raises(ConfigError, match="name another directory with --data"):
        EmbeddedServer(data=folder).start()
    assert mode(folder) == rights


def test_files_that_others_could_read_are_closed_to_them(tmp_path: Path) -> None:
    """Nobody else can reach them in their directory."""
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    (folder / f"{REDIS.hex()}.db").touch(mode=0o644)
    (folder / "lock").touch(mode=0o666)
    journal = Journal(folder)
    journal.open(REDIS)
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    journal.close()


def test_a_secret_is_read_by_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights for anybody else, another owner, a link or a pipe: each is refused, and nothing is changed."""
    file = tmp_path / "secret"
    write_private(file, b"secret")
    assert mode(file) == 0o600
    assert read_private(file) == b"secret"
    for rights in (0o640, 0o604, 0o660, 0o602):
        file.chmod(rights)
        with pytest.raises(NotOursError, match=rf"its mode is 0{rights:o}\): chmod 600"):
            read_private(file)
        assert mode(file) == rights
    file.chmod(0o644)
    assert read_unforged(file) == b"secret"
    file.chmod(0o664)
    with pytest.raises(NotOursError, match="can be used by other users"):
        read_unforged(file)
    file.chmod(0o600)
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, why in (("link", "is a symbolic link"), ("pipe", "is not a file")):
        for read in (read_private, read_unforged):
            with pytest.raises(NotOursError, match=why):
                read(tmp_path / name)
    with monkeypatch.context() as other:
        other.setattr(os, "geteuid", lambda: 4711)
        if file.stat().st_uid == 0:  # what root owns, root gives: its group may read it, too
            assert read_private(file) == b"secret"
            file.chmod(0o640)
            assert read_private(file) == b"secret"
            file.chmod(0o644)
        with pytest.raises(NotOursError):
            read_private(file)


def test_a_secret_is_written_whole_and_replaces_nothing(tmp_path: Path) -> None:
    """A file that is there stays as it is, unless it is to be replaced; nothing else is left."""
    file = tmp_path / "secret"
    write_private(file, b"first")
    with pytest.raises(FileExistsError):
        write_private(file, b"second")
    assert file.read_bytes() == b"first"
    file.chmod(0o644)
    write_private(file, b"second", replace=True)
    assert (file.read_bytes(), mode(file)) == (b"second", 0o600)
    assert list(tmp_path.iterdir()) == [file]


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
    assert place._read_url(str(file)) == "redis://:secret@host"
    assert ("can read the URL file" in caplog.text) == warned
    assert "secret" not in caplog.text


#: What the system may say, and what the user is told.
ERRORS = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "quota",
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "too many open files",
    errno.EROFS: "read-only",
    errno.EACCES: "this user may not write there",
    errno.EIO: "its disk fails",
    errno.ELOOP: "name another state directory",
}


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("name", ["lock", "home.new", f"{REDIS.hex()}.db", f"{REDIS.hex()}.running"])
def test_what_the_system_says_decides_the_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """Whichever file cannot be opened, the error is a JournalError, and nobody is told to move a good state away."""
    original = os.open

    def refuse(path: Path, flags: int, *rest: int) -> int:
        if Path(path).name == name:
            raise OSError(number, os.strerror(number))
        return original(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(JournalError, match=ERRORS[number]) as caught:
        Journal(tmp_path / "node").open(REDIS)
    assert os.strerror(number) in str(caught.value)
    assert "move it away" not in str(caught.value)


def test_a_record_that_cannot_be_written_is_a_journal_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may become full while a node serves."""
    journal = Journal(tmp_path / "node")
    journal.open(REDIS)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse)
        with pytest.raises(JournalError, match="make room on its disk"):
            journal.begin(7, "a")
    journal.close()


def test_a_journal_that_sqlite_cannot_open_is_not_damaged(tmp_path: Path) -> None:
    """SQLite says only that it cannot open it: what the system says is tried out. Here, no file can be opened."""
    journal = Journal(tmp_path / "node")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free, refused = os.dup(0), 0
    os.close(free)
    try:
        for more in range(6):
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, limits[1]))
            with suppress(JournalError):  # with some, it can be opened
                journal.open(REDIS)
                continue
            with pytest.raises(JournalError, match="ulimit -n"):
                journal.open(REDIS)
            refused += 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert refused >= 3
    journal.open(REDIS)
    journal.close()
    assert not (tmp_path / "node" / "probe").exists()


@pytest.mark.parametrize(
    ("statement", "advice"),
    [("PRAGMA max_page_count = 1", "make room on its disk"), ("PRAGMA query_only = 1", "name another state directory")],
)
def test_what_sqlite_says_decides_the_advice(tmp_path: Path, statement: str, advice: str) -> None:
    """A database that is full, or cannot be written, is no damaged one."""
    journal = Journal(tmp_path / "node")
    journal.open(REDIS)
    execute(journal, statement)
    with pytest.raises(JournalError, match=advice) as caught:
        journal.commit([Answer(7, "a", {b"h": bytes(100_000)})])
    assert "move it away" not in str(caught.value)
    journal.close()


def test_a_user_without_a_home_names_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, a uid may have neither $HOME nor an entry in the passwd file."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(JournalError, match="no home directory: name a state directory with --state-dir"):
        default_state_dir()
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_state_dir() == Path("/somewhere/brokerfl")


def test_a_record_is_not_longer_than_a_record(tmp_path: Path) -> None:
    """An id that would reach into the record of another worker is refused."""
    running = RunningFile(tmp_path / "running")
    running.note("1 " + "a" * 32, worker=1)
    for text in ("7 " + "b" * 63, "7 " + "\u00b2" * 32):
        with pytest.raises(ValueError, match="not the ids"):
            running.note(text)
    assert running.read() == [("1", "a" * 32)]
    running.close()
