"""Guards: what is done to all that a run's owner and a node write, and to what they read, so that it can be trusted.

Owns what there is to do, and that nothing of it is done by default: these classes leave everything as it is. It must
not know keys. `owner_guard` and `node_guard` sign and seal.
"""

from collections.abc import Callable, Iterable, Mapping

from brokerfl.common import FrameError, Metadata
from brokerfl.common.identity import Owner
from brokerfl.wire.cipher import CLEAR, Cipher
from brokerfl.wire.frame import Fields
from brokerfl.wire.message import encode_message
from brokerfl.wire.run import LedgerEntry, Run, decode_run, encode_run

Data = bytes | memoryview


class RunGuard:
    """What the owner of a run does to what it writes and reads. Safe to share between threads.

    Attributes:
        contents: the cipher of what goes to all nodes.
        state: the cipher of what only the owner reads.
        is_sealed: nothing that the run learns may be written in clear.
        is_signed: only what is as the owner wrote it may be trusted.
    """

    contents: Cipher = CLEAR
    state: Cipher = CLEAR
    is_sealed = False
    is_signed = False

    def frame(self, run: Run) -> bytes:
        """Return the run's frame, for its books.

        Raises:
            ConfigError, ValueError: as `encode_run`.
        """
        return encode_run(run)

    def frames(self, run: Run) -> Callable[[int], bytes]:
        """Return a function that returns the run's frame for a node; errors are those of `frame`."""
        frame = encode_run(run)
        return lambda node_id: frame

    def encode(self, message_id: str, metadata: Metadata, content: Fields) -> Fields:
        """Return the fields of a message; arguments and errors are those of `encode_message`."""
        return encode_message(message_id, metadata, content)

    def replies_of(self, node_id: int) -> Cipher:
        """Return the cipher of what a node replies."""
        return CLEAR

    def opened(self, node_id: int, message_id: str, entry: LedgerEntry, fields: Fields) -> Fields:
        """Return the fields of a reply in clear, but for a large content.

        Args:
            node_id: in whose outbox it was.
            message_id: of the message that it answers.
            entry: what the ledger holds of that.
            fields: the reply's.

        Raises:
            DistrustError: it is not as that node signed it.
            FrameError: it cannot be read.
        """
        return fields

    def written(self, state: Fields, what: str = "state") -> Fields:
        """Return the fields of a state as they are saved, or of ``what`` else the owner keeps for itself."""
        return state

    def check_state(self, state: Mapping[bytes, Data], what: str = "state") -> None:
        """Check the fields of a state that was saved, or of what else.

        Raises:
            DistrustError: they are not as the owner wrote them.
        """


class NodeGuard:
    """What a node does to what it reads and writes. Safe to share between threads.

    Attributes:
        data_set: the identity of the Redis data set.
    """

    data_set = b""

    def run(self, run_id: int, frame: bytes) -> Run:
        """Return a run, and know it from now on.

        Raises:
            DistrustError: nobody signed it whom this node trusts.
            FrameError: it cannot be read.
        """
        run = decode_run(run_id, frame)
        if run.is_sealed:
            raise FrameError("the run is sealed, and this node has no keys: start it with --credentials and --sign")
        return run

    def owner_of(self, run_id: int) -> Owner | None:
        """Return the owner who signed a run; None if that is not known."""
        return None

    def knows(self, run_id: int) -> bool:
        """Whether what was answered in a run may be answered again: else it might be told to somebody else."""
        return True

    def check(self, run_id: int, message_id: str, metadata: Metadata, fields: Mapping[bytes, Data]) -> None:
        """Check a message before anything is done with it.

        Raises:
            DistrustError: it is not as the owner of its run signed it, for this node, not long ago.
        """

    def contents(self, run_id: int) -> Cipher:
        """Return the cipher of what a run sends."""
        return CLEAR

    def replies(self, run_id: int) -> Cipher:
        """Return the cipher of what this node replies to a run."""
        return CLEAR

    def tells(self, run_id: int) -> bool:
        """Whether what a run's messages did here may be told in clear."""
        return True

    def protected(self, run_id: int, message_id: str, reply: Fields) -> Fields:
        """Return the fields of a reply as they are published."""
        return reply

    def forget(self, run_ids: Iterable[int]) -> None:
        """These runs are over."""

    def clear(self) -> None:
        """Forget all runs."""


class Protection:
    """Who a process is and whom it trusts: makes the guards. This one is nobody, and trusts everybody.

    Attributes:
        needs_data_set: the guards need the identity of the data set.
    """

    needs_data_set = False

    def for_new(self, data_set: bytes, run_id: int) -> RunGuard:
        """Return the guard of a new run."""
        return RunGuard()

    def for_old(self, data_set: bytes, run: Run) -> tuple[RunGuard, Run]:
        """Return the guard of a run that is resumed, and the run in clear.

        Raises:
            FrameError: it is signed or sealed, and this process cannot check or open it.
        """
        if run.proof is not None:
            raise FrameError(
                f"run {run.run_id} is {'sealed' if run.is_sealed else 'signed'}: resume it with --sign, and with the "
                "--credentials with which it was started"
            )
        return RunGuard(), run

    def for_node(self, node_id: int) -> NodeGuard:
        """Return the guard of a node."""
        return NodeGuard()


#: Nobody is asked who they are.
UNPROTECTED = Protection()
