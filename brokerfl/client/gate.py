"""The gate: which messages of which runs the site lets its node execute.

Owns what waits and why, and the limits by the hour. It must not know how a message is kept while it waits, or executed.

Whatever the file does not allow waits until the site approves the run (`gate_folder`), until the file allows it, or
until the message expires. The file is read again when it changes.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from brokerfl.client.gate_file import ANYBODY, Approve, Rule, configs_in, read_gate_file
from brokerfl.client.gate_folder import GateFolder, Verdict
from brokerfl.client.journal import FORGET_AFTER
from brokerfl.client.trouble import trouble
from brokerfl.common import ConfigError, JournalError, Message, log
from brokerfl.common.text import shown
from brokerfl.wire.origin import Origin
from brokerfl.wire.run import Run

HOUR = 3600.0

#: Seconds after which the gate is asked again about a run: the message that it did not let in may be cancelled.
_AGAIN = 60.0

#: What a ServerApp is told; what the file says stays at the site.
REFUSED = "the gate of the node's site refused the run"


class Withheld(Exception):  # noqa: N818  (it says what is so)
    """The message waits at the gate."""


class Denied(Exception):  # noqa: N818
    """The site executes no message of the run; the text is for the ServerApp."""


@dataclass(frozen=True)
class Asked:
    """A message about which the gate is asked.

    Attributes:
        run: its run.
        owner: whose run that is: a public key in base64, a realm, or "" if nobody knows.
        message_id: its id.
        type: its type.
        expires: local Unix time at which it expires.
    """

    run: Run
    owner: str
    message_id: str
    type: str
    expires: float


@dataclass(frozen=True)
class _Held:
    """A run that waits.

    Attributes:
        owner: whose run it is.
        why: why it waits.
        until: local Unix time at which the gate is asked again.
    """

    owner: str
    why: str
    until: float


class Gate:
    """The gate of one node. Safe to share between threads.

    Args:
        path: the file.
        folder: where the site decides.

    Raises:
        ConfigError: the file is not what it should be.
        JournalError: the directory cannot be used.
    """

    def __init__(self, path: Path, folder: GateFolder) -> None:
        self._path, self._folder = path, folder
        self._stamp = self._look()
        self._rules = read_gate_file(path)
        self._using = threading.RLock()
        self._held: dict[int, _Held] = {}
        self._said: dict[int, float] = {}  # since when runs wait
        self._free: set[int] = set()  # of those held: nobody has asked about them again
        self._let_in: dict[int, str] = {}
        self._executed: dict[str, dict[str, float]] = {}  # by owner and message, the oldest first
        self._known: set[int] | None = None
        self._absent: dict[int, float] = {}
        try:
            folder.open()
            self._verdicts = folder.verdicts()
        except OSError as error:
            raise self._trouble(error) from None

    def _trouble(self, error: OSError) -> JournalError:
        return trouble("the gate's directory", self._folder.path, "cannot be used", error)

    def remember(self, executed: Iterable[tuple[float, str, str]]) -> None:
        """Count what was executed before: (Unix time, owner, message id), the oldest first."""
        with self._using:
            for at, owner, message_id in executed:
                self._executed.setdefault(owner, {})[message_id] = at

    # Messages.

    def admit(self, asked: Asked) -> None:
        """Let a message in whose content is not known yet.

        Raises:
            Withheld: it waits.
            Denied: it is to be refused.
        """
        run_id, now = asked.run.run_id, time.time()
        with self._using:
            rule, is_approved = self._rule_of(asked), self._verdicts.get(run_id) is Verdict.APPROVED
            if rule is not None and rule.approve is Approve.NEVER:
                raise Denied(REFUSED)
            if not is_approved and (why := self._objection(rule, asked)):
                self._hold(asked, why, asked.expires)
            if rule is not None:
                if until := rule.opens(now):
                    self._hold(asked, f"it is not the time for it until {_clock(until)}", until)
                self._spend(rule, asked, now)
            self._let_in[run_id] = asked.owner

    def admit_content(self, asked: Asked, content: Callable[[], Message]) -> None:
        """The same, when its content is known, which is decoded if it matters."""
        with self._using:
            rule, is_approved = self._rule_of(asked), self._verdicts.get(asked.run.run_id) is Verdict.APPROVED
            if rule is not None and rule.message_configs is not None and not is_approved:
                configs = configs_in(content())
                if why := rule.objection_to_content(configs):
                    self._hold(asked, why, asked.expires, {key: _told(value) for key, value in configs})
            self.forget(asked.run.run_id)

    def _rule_of(self, asked: Asked) -> Rule | None:
        if self._verdicts.get(asked.run.run_id) is Verdict.DENIED:
            self.forget(asked.run.run_id)
            raise Denied(REFUSED)
        return self._rules.get(asked.owner) or self._rules.get(ANYBODY)

    def _objection(self, rule: Rule | None, asked: Asked) -> str:
        if rule is None:
            return "the gate's file does not name its owner"
        if why := rule.objection(asked.run, asked.type):
            return why
        if rule.approve is Approve.ASK:
            return "each run of its owner is to be approved"
        others = sum(owner == asked.owner for run, owner in self._let_in.items() if run != asked.run.run_id)
        if rule.most_open_runs is not None and others >= rule.most_open_runs:
            return f"its owner has {others} open runs"
        return ""

    def _spend(self, rule: Rule, asked: Asked, now: float) -> None:
        """Count a message, once however often it comes again."""
        executed = self._executed.setdefault(asked.owner, {})
        for message_id, at in list(executed.items()):
            if now - HOUR < at <= now + HOUR:  # the clock may have been set
                break
            del executed[message_id]
        if rule.most_messages is None or asked.message_id in executed:
            return
        if len(executed) >= rule.most_messages:
            until = min(executed.values(), default=now) + HOUR
            self._hold(asked, f"its owner has had {len(executed)} messages in an hour; until {_clock(until)}", until)
        executed[asked.message_id] = now

    def _hold(self, asked: Asked, why: str, until: float, configs: dict[str, Any] | None = None) -> None:
        run, until, now = asked.run, min(until, asked.expires), time.time()
        self._held[run.run_id] = _Held(asked.owner, why, min(until, now + _AGAIN))
        self._free.discard(run.run_id)
        is_new, since = run.run_id not in self._said, self._said.setdefault(run.run_id, now)
        record = {
            "owner": asked.owner,
            "name": run.name,
            **_app(run.app, run.origin),
            "type": asked.type,
            "message": asked.message_id,
            "run_config": run.run_config,
            "message_configs": configs or {},
            "why": why,
            "since": since,
            "until": until,
        }
        try:
            self._folder.write(run.run_id, Verdict.PENDING, record)
        except OSError as error:
            raise self._trouble(error) from None
        if is_new:  # the reason stays at the site: its log may be shared with the run
            text = "Run %s of %s waits at the gate; decide with `brokerfl gate approve %s`, or deny"
            log(WARNING, text, run.run_id, shown(asked.owner) or "an unknown owner", run.run_id)
        raise Withheld(why)

    def forget(self, run_id: int) -> None:
        """It does not wait any more."""
        self._held.pop(run_id, None)
        self._free.discard(run_id)
        if self._said.pop(run_id, None) is not None:
            self._remove(run_id)

    def _remove(self, run_id: int, verdict: Verdict = Verdict.PENDING) -> None:
        try:
            self._folder.remove(run_id, verdict)
        except OSError as error:
            raise self._trouble(error) from None

    # Runs.

    def holds(self, run_id: int) -> bool:
        """Whether a run has to wait: otherwise the gate is to be asked."""
        return run_id in self._held and run_id not in self._free

    def free(self) -> list[int]:
        """Return those of the runs that wait about which the gate is to be asked again."""
        with self._using:
            return list(self._free)

    def held(self) -> list[int]:
        """Return the runs that wait."""
        with self._using:
            return list(self._held)

    def keep_only(self, run_ids: Collection[int]) -> None:
        """The others are over: what waits because its owner had too many is asked about again."""
        with self._using:
            self._known = set(run_ids)
            over = [run_id for run_id in (*self._held, *self._let_in, *self._said) if run_id not in run_ids]
            owners = {self._let_in.pop(run_id) for run_id in dict.fromkeys(over) if run_id in self._let_in}
            for run_id in over:
                self.forget(run_id)
            self._release(lambda _, held: held.owner in owners)

    def clear(self) -> None:
        """They belong to another Redis."""
        self.keep_only(())

    def watch(self) -> bool:
        """Look at the file, the decisions and the clock. Returns whether a run need not wait any more.

        Raises:
            JournalError: the directory of the decisions cannot be read.
        """
        try:
            self._tidy()
            verdicts = self._folder.verdicts()
        except OSError as error:
            raise self._trouble(error) from None
        now, is_new = time.time(), self._read_again()
        with self._using:
            changed = {run for run in verdicts.keys() | self._verdicts if verdicts.get(run) != self._verdicts.get(run)}
            self._verdicts = verdicts
            return self._release(lambda run_id, held: is_new or held.until <= now or run_id in changed)

    def _tidy(self) -> None:
        """Delete decisions about runs that have been over for long: a Redis that forgot a run may get it back."""
        now, known = time.monotonic(), self._known
        if known is None:  # nobody has looked yet
            return
        absent = {run_id: self._absent.get(run_id, now) for run_id in self._verdicts.keys() - known}
        for run_id in [run_id for run_id, since in absent.items() if now - since > FORGET_AFTER]:
            self._remove(run_id, self._verdicts[run_id])
            del absent[run_id]
        self._absent = absent

    def _release(self, is_free: Callable[[int, _Held], bool]) -> bool:
        """Let the gate be asked again about these runs; return whether there are any."""
        free = {run_id for run_id, held in self._held.items() if is_free(run_id, held)}
        self._free |= free
        return bool(free)

    def _look(self) -> tuple[int, ...]:
        """Return what changes with the file; nothing if it is not there."""
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read_again(self) -> bool:
        """Read the file if it has changed; one that is wrong changes nothing."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            rules = read_gate_file(self._path)
        except ConfigError as error:
            log(WARNING, "The gate goes on with its former file, because %s", error)
            return False
        log(INFO, "The gate file %s was read again", self._path)
        with self._using:
            self._rules = rules
        return True


def _app(app: str, origin: Origin | None) -> dict[str, str]:
    told = {"app": app}
    return told if origin is None else {**told, "project": str(origin), "digest": origin.digest}


def _told(value: Any) -> Any:
    """Return a config as JSON takes it."""
    if isinstance(value, list):
        return [_told(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


def _clock(at: float) -> str:
    return time.strftime("%a %H:%M", time.localtime(at))
