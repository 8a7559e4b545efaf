"""The site: what it decides about what its node does, and what it keeps of what has left.

Owns whose run a run is, and the order of gate, review and audit. It must not know how messages wait, or replies travel.
Without gate, review and audit file everything is executed, and nothing is kept.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from logging import WARNING

from brokerfl.broker.keys import REALM_DIGITS, RUN_DIGITS
from brokerfl.client.audit import Audit, Receipt, content_of, digest_of, outcome_of
from brokerfl.client.gate import HOUR, Asked, Gate
from brokerfl.common import FrameError, Message, Metadata, log
from brokerfl.wire.frame import MANIFEST, Fields, size_of
from brokerfl.wire.manifest import manifest_of
from brokerfl.wire.message import decode_header
from brokerfl.wire.record import decode_content
from brokerfl.wire.run import Run

#: Called with a message and its reply, before that is encoded. False, or whatever it raises, keeps the reply here.
Review = Callable[[Message, Message], object]


class ReplyRefused(Exception):  # noqa: N818  (it says what is so)
    """The site's review keeps a reply back. The text is for the ServerApp."""


#: What a ServerApp is told; why is only in the node's log.
_KEPT = "the review of the node's site refused the reply"


class Site:
    """What one site decides. Safe to share between threads.

    Args:
        gate: which messages are executed; None for all.
        audit: has a line for each reply; None for no file.
        review: looks at each reply before it is encoded.

    Attributes:
        wake: called when a run need not wait any more.
        signer: returns the public key of who signed a run; None if nobody's signature was checked.
    """

    def __init__(self, gate: Gate | None = None, audit: Audit | None = None, review: Review | None = None) -> None:
        self._gate, self._audit, self._review = gate, audit, review
        self.wake: Callable[[], None] = lambda: None
        self.signer: Callable[[int], bytes | None] = lambda _: None
        if gate is not None and audit is not None:
            gate.remember(audit.recent(HOUR))

    # Messages.

    @property
    def has_gate(self) -> bool:
        """Whether messages may have to wait."""
        return self._gate is not None

    def admit(self, run: Run, message_id: str, message_type: str, left: float) -> None:
        """Let a message in whose content is not known yet; ``left`` are the seconds until it expires.

        Raises:
            Withheld, Denied: see `Gate`.
        """
        if self._gate is not None:
            self._gate.admit(self._asked(run, message_id, message_type, left))

    def admit_content(self, run: Run, message_id: str, metadata: Metadata, content: Fields, left: float) -> None:
        """The same, when its content is known.

        Raises:
            Withheld, Denied: see `Gate`.
            FrameError: it cannot be read.
        """
        if self._gate is not None:
            asked = self._asked(run, message_id, metadata.message_type, left)
            self._gate.admit_content(asked, lambda: Message(metadata, content=decode_content(content)))

    def _asked(self, run: Run, message_id: str, message_type: str, left: float) -> Asked:
        return Asked(run, self.owner_of(run), message_id, message_type, time.time() + left)

    def owner_of(self, run: Run) -> str:
        """Return whose run it is: a public key in base64, a realm, or "" if nobody knows."""
        key, run_id = self.signer(run.run_id), str(run.run_id)
        if key is not None:
            return b64encode(key).decode()
        return run_id[:REALM_DIGITS] if len(run_id) == RUN_DIGITS else ""

    def holds(self, run_id: int) -> bool:
        """Whether a run waits at the gate."""
        return self._gate is not None and self._gate.holds(run_id)

    def ask_again(self, is_there: Callable[[int], bool]) -> None:
        """Forget the runs about which the gate is to be asked again, but of which nothing ``is_there`` any more."""
        if self._gate is not None:
            for run_id in self._gate.free():
                if not is_there(run_id):
                    self._gate.forget(run_id)

    def held(self) -> list[int]:
        """Return the runs that wait at the gate."""
        return [] if self._gate is None else self._gate.held()

    def keep_only(self, run_ids: Collection[int]) -> None:
        """The other runs are over."""
        if self._gate is not None:
            self._gate.keep_only(run_ids)

    def watch(self) -> None:
        """Look whether a run need not wait any more.

        Raises:
            JournalError: the directory of the decisions cannot be read.
        """
        if self._gate is not None and self._gate.watch():
            self.wake()

    # Replies.

    def look_over(self, message: Message, reply: object) -> None:
        """Have the review look at what the ClientApp returned.

        Raises:
            ReplyRefused: it is to stay here.
        """
        if self._review is None or not isinstance(reply, Message):
            return
        try:
            verdict = self._review(message, reply)
        except Exception as error:
            log(WARNING, "The review refused a reply: %s: %s", type(error).__name__, error)
            raise ReplyRefused(_KEPT) from None
        if verdict is not None and verdict is not True:
            log(WARNING, "The review refused a reply: it returned %r", verdict)
            raise ReplyRefused(_KEPT)

    def receipt(
        self,
        node_id: int,
        run: Run | None,
        asked: Mapping[bytes, bytes | memoryview],
        reply: Fields,
        content: Fields | None,
    ) -> Receipt:
        """Return what the audit file is to have of a reply.

        Args:
            node_id: the node.
            run: the run; None if it cannot be read.
            asked: the fields of the message.
            reply: those of the reply; without its content, where that is given.
            content: the fields of its content, in clear; None if it is among those of the reply.
        """
        metadata, error = decode_header(reply)
        outcome, kind = outcome_of(error)
        parts = [*content_of(reply if content is None else content).values()]
        if error is not None:
            parts = [(error.reason or "").encode()]
        is_here = error is not None or content is not None or MANIFEST not in reply
        left = manifest_of(reply) if not is_here else None
        size, message_type = size_of(asked), ""
        with suppress(FrameError):
            message_type = decode_header(asked)[0].message_type
            manifest = manifest_of(asked)
            size = manifest.size if manifest is not None else size_of(content_of(asked))
        return Receipt(
            node=str(node_id),
            owner=self.owner_of(run) if run is not None else "",
            run=str(metadata.run_id),
            message=metadata.reply_to_message,
            type=message_type,
            bytes_in=size,
            bytes_out=sum(map(len, parts)) if left is None else left.size,
            sha256=digest_of(parts) if is_here else None,
            outcome=outcome,
            error=kind,
        )

    @property
    def audits(self) -> bool:
        """Whether there is an audit file."""
        return self._audit is not None

    def account(self, receipts: Sequence[Receipt]) -> None:
        """Have lines in the audit file for what is about to be published.

        Raises:
            JournalError: they cannot be written; then nothing may be published.
        """
        if self._audit is not None:
            self._audit.write(receipts)

    def close(self) -> None:
        """Close the audit file."""
        if self._audit is not None:
            self._audit.close()
