"""Users that a container may run a command as: without an entry in the passwd file, a home directory, or any rights.

The commands run in a process that becomes such a user after its imports: root's interpreter may be where only root
can read.
"""

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

#: An id that belongs to nobody.
NOBODY = 54_321

CHILD = """
import os, pathlib, sys
import brokerfl.cli.node, brokerfl.cli.dead
from brokerfl.client.journal import Journal
if os.getuid() == 0:
    os.setgroups([])
    os.setgid({user})
    os.setuid({user})
"""

#: Ends as the command does.
NODE = CHILD + "sys.argv = ['brokerfl-node', 'client:app', '--name', 'berlin']; brokerfl.cli.node.main()"
DEAD = CHILD + "sys.argv = ['brokerfl dead', 'show', 'x']; brokerfl.cli.dead.dead()"
JOURNAL = CHILD + "journal = Journal(pathlib.Path(sys.argv[1])); journal.open(b'redis'); journal.close(); print('open')"


def ends(code: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a process without a home directory."""
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_STATE_HOME")}
    command = [sys.executable, "-c", code.format(user=NOBODY), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that every user may enter: pytest's own are one user's alone."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("code", [NODE, DEAD], ids=["brokerfl-node", "brokerfl dead"])
def test_a_user_without_an_entry_needs_a_state_directory(code: str) -> None:
    """With neither $HOME nor an entry in the passwd file, a command ends with 21 and names the option."""
    with suppress(KeyError):
        pytest.skip(f"{pwd.getpwuid(NOBODY).pw_name} has the id")
    status, text = ends(code)
    assert (status, text) == (21, "Error: this user has no home directory: name a state directory with --state-dir\n")


def test_a_user_that_may_not_write_is_told_so(folder: Path) -> None:
    """A directory of root's, or without the right to write, is no damaged one: nothing is to be moved away."""
    folder.chmod(0o555)
    status, text = ends(JOURNAL, str(folder / "3"))
    assert status == 1
    assert "JournalError: the state directory" in text
    assert "cannot be written (Permission denied): this user may not write there: name another" in text
    assert "move it away" not in text


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_what_belongs_to_another_user_is_refused(folder: Path) -> None:
    """Root made the directory, perhaps in a container without `user:`; a directory of its own serves any user."""
    (folder / "3").mkdir(mode=0o755)
    status, text = ends(JOURNAL, str(folder / "3"))
    assert status == 1
    assert "belongs to another user: name another state directory" in text
    os.chown(folder, NOBODY, NOBODY)
    assert ends(JOURNAL, str(folder / "4")) == (0, "open\n")
