"""Dead messages: those that nodes set aside because they killed them too often, and the states that belong to them.

Owns what is known about one, and where to look for them. It must not know ClientApp, or how a journal keeps them.
"""

from dataclasses import dataclass
from pathlib import Path

from brokerfl.client.folder import default_state_dir
from brokerfl.client.foreign import ForeignJournal


@dataclass(frozen=True)
class DeadMessage:
    """A message that killed its node too often.

    Attributes:
        message_id: its id.
        run_id: its run.
        node_id: the node.
        head: those of its fields that come first, with the header.
        size: of all of them, in bytes.
        crashes: how often it killed the node.
        at: Unix time in seconds at which it was set aside.
        journal: the file that holds it.
    """

    message_id: str
    run_id: int
    node_id: int
    head: dict[bytes, bytes]
    size: int
    crashes: int
    at: float
    journal: Path

    def read_fields(self) -> dict[bytes, bytes]:
        """Return the message, as it was received.

        Raises:
            ConfigError: the journal cannot be read.
        """
        return ForeignJournal(self.journal).fields_of(self.message_id)

    def read_state(self) -> dict[bytes, bytes] | None:
        """Return the fields of the run's state as its node has them now; None if it never had any.

        Raises:
            ConfigError: the journal cannot be read.
        """
        return ForeignJournal(self.journal).state_of(self.run_id)

    def forget(self) -> None:
        """Delete it from the journal.

        Raises:
            ConfigError: the journal cannot be written.
        """
        ForeignJournal(self.journal).forget(self.message_id)


def dead_messages(state_dir: Path | None = None) -> list[DeadMessage]:
    """Return the dead messages of all nodes that keep their state in one directory, oldest first, without contents.

    Args:
        state_dir: the nodes' ``--state-dir``; None for the default.

    Raises:
        ConfigError: a journal cannot be read.
    """
    files = (state_dir or default_state_dir()).glob("*/*.db")
    found = [message for file in files if file.parent.name.isdigit() for message in _read(file)]
    return sorted(found, key=lambda message: message.at)


def _read(journal: Path) -> list[DeadMessage]:
    node_id = int(journal.parent.name)
    return [
        DeadMessage(each.message_id, each.run_id, node_id, each.head, each.size, each.crashes, each.at, journal)
        for each in ForeignJournal(journal).dead()
    ]
