"""What Redis holds of a run besides its messages: the run's frame, and the entries of its ledger.

Owns their layout. It must not know keys or states.
"""

from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

from brokerfl.common import ConfigError, FrameError, MessageTooLarge, UserConfig
from brokerfl.common.config import SCALARS
from brokerfl.wire.frame import pack, unpack
from brokerfl.wire.manifest import is_uploader, uploaded_by
from brokerfl.wire.origin import Origin, listed, origin_of

#: Most characters of a run's name.
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Proof:
    """By what a run shows whose it is. `owner_guard` makes it, and `node_guard` checks it.

    Attributes:
        owner: the owner's public Ed25519 key.
        exchange: the owner's public X25519 key.
        commitment: what shows that a key is that of a sealed run; b"" for a run that is not sealed.
        config: the run config of a sealed run and its overrides, sealed.
        signature: of the frame with all that.
        wrapped: the key of a sealed run, for the reader of this copy of the frame; not signed.
    """

    owner: bytes
    exchange: bytes
    commitment: bytes = b""
    config: bytes = b""
    signature: bytes = b""
    wrapped: bytes = b""


@dataclass(frozen=True)
class Run:
    """A run as its ServerApp, its nodes and the operator see it.

    Attributes:
        run_id: random uint64, never 0 or 1.
        app: the ServerApp, as ``module:attribute``.
        run_config: the run's configuration, given to every Context.
        created_at: Unix time in seconds, by Redis' clock.
        origin: where the ServerApp comes from; None for that of a script.
        overrides: the keys of the run config that override defaults of the project; None for all of them.
        name: what the user calls it; "" for nothing.
        proof: of a signed run; None in the hands of its owner. The config of a sealed run is only in there.

    A name is cut to 100 characters.
    """

    run_id: int
    app: str
    run_config: UserConfig
    created_at: float
    origin: Origin | None = None
    overrides: tuple[str, ...] | None = None
    name: str = ""
    proof: Proof | None = None

    @property
    def is_sealed(self) -> bool:
        """Whether its config, its log and what it learns can be read only by its owner and its nodes."""
        return self.proof is not None and bool(self.proof.commitment)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name[:_LONGEST_NAME])


#: The keys by which apps are told how many rounds to make: `num-server-rounds` is that of Flower's templates.
_ROUNDS = frozenset({"num-server-rounds", "num_server_rounds", "num-rounds", "num_rounds"})


def extended(run: Run, run_config: UserConfig) -> Run | None:
    """Return a run with another config that only has more rounds; None if more is different."""
    former = run.run_config
    if former.keys() != run_config.keys():
        return None
    changed = [key for key, value in run_config.items() if value != former[key] or type(value) is not type(former[key])]
    if not _ROUNDS.issuperset(changed) or any(run_config[key] < former[key] for key in changed):  # type: ignore[operator]
        return None
    given = None if run.overrides is None else (*run.overrides, *(key for key in changed if key not in run.overrides))
    return replace(run, run_config=dict(run_config), overrides=given)


def encode_run(run: Run) -> bytes:
    """Return the frame of ``run`` without its id, which is in the name of the key or hash field that holds it.

    Raises:
        ConfigError: the run config is too large, or a value is not a boolean, number or string.
        ValueError: it holds something that msgpack cannot carry.
    """
    for key, value in run.run_config.items():
        if not isinstance(key, str) or not isinstance(value, SCALARS):
            raise ConfigError(
                f"the run config: {key!r} is a {type(value).__name__}, but keys must be str, and values booleans, "
                "numbers or strings"
            )
    try:
        return pack([run.app, run.created_at, run.run_config, *_further(run)])
    except MessageTooLarge as error:
        sizes = {"the app": len(run.app)}
        sizes |= {f"the value of {key!r}": len(str(value)) for key, value in run.run_config.items()}
        longest = max(sizes, key=sizes.__getitem__)
        raise ConfigError(
            f"the run config is too large: {error}, and {longest} has {sizes[longest]:,} characters: "
            "send long texts in messages, or let the config name a file"
        ) from None


def _further(run: Run) -> list[Any]:
    """Return what a frame has besides what every run has; nothing for the unnamed run of a script."""
    if run.origin is None and run.overrides is None and not run.name and run.proof is None:
        return []
    given = None if run.overrides is None else list(run.overrides)
    proof = [] if run.proof is None else [list(astuple(run.proof))]
    return [listed(run.origin) if run.origin else [], given, run.name, *proof]


def decode_run(run_id: int, data: bytes) -> Run:
    """Return the run that `encode_run` made.

    Raises:
        FrameError: malformed, or written by another version.
    """
    match unpack(data):
        case [str(app), float(created_at), dict(config), *more] if all(
            isinstance(key, str) and isinstance(value, SCALARS) for key, value in config.items()
        ):
            origin = origin_of(app, more[0]) if more and more[0] else None
            given = more[1] if len(more) > 1 else None
            name = more[2] if len(more) > 2 and isinstance(more[2], str) else ""
            is_known = isinstance(given, list) and all(isinstance(key, str) and key in config for key in given)
            overrides = tuple(given or ()) if is_known else None
            proof = _proof_in(more[3]) if len(more) > 3 else None
            run = Run(run_id, app, config, created_at, origin, overrides, name, proof)
            if more == _further(run):
                return run
    raise FrameError(f"the frame of run {run_id} is malformed")


def _proof_in(told: Any) -> Proof | None:
    match told:
        case [bytes(), bytes(), bytes(), bytes(), bytes(), bytes()]:
            return Proof(*told)
    return None


class LedgerEntry(NamedTuple):
    """What the ledger's hash holds about one message.

    Attributes:
        node_id: the node that is to execute it.
        group_id: its group.
        message_type: its type.
        deadline: Unix time in milliseconds at which it expires: in Redis by Redis' clock, in memory by `broker.clock`.
        sequence: its number in the run, counted from 1: after a resume the oldest is adopted first.
        digest: of its content, as `record.digest_of` makes it; equal content is adopted before the oldest.
        waits: it waits for a node that is offline; only its deadline ends it.
        uploader: the number of the run's owner that uploaded its content; 0 for one that is in the message itself.
    """

    node_id: int
    group_id: str
    message_type: str
    deadline: int
    sequence: int = 0
    digest: bytes = b""
    waits: bool = False
    uploader: int = 0

    @property
    def key(self) -> tuple[str, int, str]:
        """What a message pushed after a resume must have in common with it to adopt it."""
        return self.group_id, self.node_id, self.message_type

    @property
    def content_key(self) -> bytes:
        """What its content is called in Redis, if it is large."""
        return uploaded_by(self.uploader, self.digest)


def encode_entry(entry: LedgerEntry) -> bytes:
    """Return the bytes of a ledger entry."""
    e = entry
    return pack([e.node_id, e.group_id, e.message_type, e.deadline, e.sequence, e.digest, e.waits, e.uploader])


def decode_entry(data: bytes) -> LedgerEntry:
    """Return the ledger entry that `encode_entry` made.

    Raises:
        FrameError: malformed, or written by another version.
    """
    entry: Any = unpack(data)
    match entry:
        case [
            int(node_id),
            str(group_id),
            str(message_type),
            int(deadline),
            int(sequence),
            bytes(digest),
            bool(waits),
            uploader,
            *_,
        ] if is_uploader(uploader):
            return LedgerEntry(node_id, group_id, message_type, deadline, sequence, digest, waits, uploader)
    raise FrameError("a ledger entry is malformed")
