"""A world in one thread: a ServerApp, nodes and their Redis (`shards`), and one accident at an exact command.

Owns the order in which processes run, and the accidents. Nothing here waits: a ServerApp that blocks lets the nodes
work, and when nobody has anything to do the clock goes on. So a case takes milliseconds and always does the same.

Every command a process sends is counted, a MULTI … EXEC as one. At the k-th command of its victim an accident happens,
before or after the server executes it:

    kill     the process is gone; another one starts in its place
    cut      its connection breaks
    forget   a Redis loses the last writes it acknowledged, and every connection to it breaks
    silent   the same behind a proxy: no connection breaks
    move     the slot of the command's key moves to another server
    stop     somebody stops the run
    freeze   another process takes the victim's place and does all the rest; then the victim wakes
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from redis.client import Pipeline
from redis.exceptions import ConnectionError, ResponseError, WatchError

from brokerfl.broker import process as identity
from brokerfl.broker.connection import Connection
from brokerfl.broker.ending import stop_run
from brokerfl.broker.failure import AstrayError
from brokerfl.broker.heartbeat import Heartbeat
from brokerfl.broker.keys import LEASE, Keys, milliseconds
from brokerfl.broker.nodes import Registration
from brokerfl.broker.ownership import ownership_in
from brokerfl.broker.runs import going_on
from brokerfl.broker.servers import OneServer, Server, Servers
from brokerfl.broker.sockets import Command, Sockets
from brokerfl.client import ClientApp
from brokerfl.client.journal import Journal
from brokerfl.client.node import Node
from brokerfl.client.publisher import Publisher
from brokerfl.common import (
    BrokerflError,
    Context,
    Message,
    MetricsRecord,
    NodeNameTaken,
    RedisUnreachable,
    RunError,
    RunNotFound,
    RunStopped,
)
from brokerfl.server import Driver
from brokerfl.wire import hashing, manifest, payload
from brokerfl.wire.record import decode_content
from tests.apps import number
from tests.conftest import PREFIX
from tests.crash.direct import DirectClient
from tests.crash.shards import KnownShards, Shards, keys_of, tag_of
from tests.stage import fail_node, publisher_of

#: Virtual seconds after which a case counts as hanging. No accident takes longer than a lease and an offline grace.
PATIENCE = 300.0


class Killed(BaseException):
    """The process is gone: no Exception, so that nothing catches it."""


@dataclass
class Accident:
    """What happens at the ``k``-th command of ``victim``, and whether before or after the server executes it.

    Attributes:
        shard: the server that forgets.
        layout: where the keys are: one of `shards.LAYOUTS`.
    """

    kind: str = "none"
    victim: str = ""
    k: int = 0
    before: bool = True
    forgets: int = 0
    wakes_after: int = 0
    shard: int = 0
    layout: str = "single"

    @property
    def is_loss(self) -> bool:
        """Whether only a part of the servers forgets, or nobody is told."""
        return self.kind == "silent" or (self.kind == "forget" and self.layout != "single")

    def __str__(self) -> str:
        when = "before" if self.before else "after"
        return (
            f"{self.kind} {when} command {self.k} of {self.victim} ({self.forgets} forgotten by {self.shard}, "
            f"{self.wakes_after} turns, {self.layout})"
        )


@dataclass
class Execution:
    """One run of a ClientApp's function, by a process that had been started so often."""

    process: int
    starts: int
    node_id: int
    message_id: str
    group: str
    value: int


class World:
    """Processes, their Redis, and what happened.

    Args:
        accident: what is to happen.
        nodes: how many nodes.

    Attributes:
        is_utmost: to forget more writes, or to wake after more turns, would have been the same.
        at_the_end: how many commands each had sent when the ServerApp had ended.
        is_struck_at_its_end: the run was ending when the accident happened.
        is_end_known: somebody has read that the run has ended.
    """

    def __init__(self, accident: Accident, nodes: int = 2) -> None:
        self.accident = accident
        self.happened = False
        self.is_struck_at_its_end = False
        self.is_end_known = False
        self.is_utmost = True
        self.sleeps = accident.wakes_after
        self.shards = Shards(accident.layout)
        self.counts: dict[str, int] = {}
        self.ready: dict[str, int] = {}
        self.at_the_end: dict[str, int] = {}
        self.commands: dict[str, list[str]] = {}
        self.writes = 0
        self.executions: list[Execution] = []
        self.clock = 0.0
        self.wires: list[Wire] = []
        self.nodes = [NodeProcess(self, f"node{index}", f"node{index}") for index in range(nodes)]
        self.asleep: list[NodeProcess | Frozen] = []
        self.frozen: Frozen | None = None
        self.is_over = False
        self.in_turn = False

    def register_nodes(self) -> None:
        """Let every node enter the registry."""
        while waiting := [process for process in self.nodes if not process.is_registered]:
            waiting[0].turn()
        self.shards.settle()
        self.ready = dict(self.counts)

    def wire(self, name: str) -> "Wire":
        self.wires.append(Wire(self, name))
        return self.wires[-1]

    @property
    def node_ids(self) -> list[int]:
        return list(dict.fromkeys(process.node.node_id for process in self.nodes))

    def run_nodes(self) -> bool:
        """Let every node have its turn; return whether any of them wrote anything."""
        if self.in_turn:  # it is a node that waits
            return False
        before, self.in_turn = self.writes, True
        try:
            self.wake_sleepers()
            for process in list(self.nodes):
                process.turn()
        finally:
            self.in_turn = False
        return self.writes != before

    def look_at_the_clock(self) -> float:
        """Return virtual seconds; every look takes a microsecond, so that none depends on the machine."""
        self.clock += 1e-6
        return self.clock

    def pass_time(self, seconds: float) -> None:
        if self.in_turn:  # a node waits, perhaps for a lease: who lives renews it
            for process in self.nodes:
                process.renew()
        self.clock += seconds
        assert self.clock < PATIENCE, "the run hangs"

    def replace(self, frozen: "NodeProcess") -> None:
        """A node did not answer for longer than its lease: somebody starts it on another machine."""
        self.clock += 2 * LEASE
        self.release(Keys(PREFIX).node_lease(frozen.node.node_id))
        self.asleep.append(frozen)
        self.nodes[self.nodes.index(frozen)] = NodeProcess(self, "successor", frozen.name)

    def wake_sleepers(self, at_the_end: bool = False) -> None:
        """Who is frozen wakes some turns after that, at the latest when all is over."""
        for sleeper in list(self.asleep):
            self.sleeps -= 1
            self.is_utmost = self.is_utmost and self.sleeps >= 0
            if self.sleeps < 0 or at_the_end:
                self.asleep.remove(sleeper)
                sleeper.wake()

    def finish(self) -> None:
        """Let everybody who is still there have some turns after the end."""
        self.at_the_end = dict(self.counts)
        self.is_over = True
        self.in_turn = True
        self.wake_sleepers(at_the_end=True)
        self.in_turn = False
        for _ in range(5):
            self.run_nodes()
        if self.accident.kind == "silent":  # a node may have missed the end: it notices with its next look
            for place in range(len(self.shards.all)):
                self.cut(place)
            for _ in range(5):
                self.run_nodes()

    # Accidents.

    def command(self, wire: "Wire", place: int, commands: Sequence[tuple[Any, ...]], execute: Callable[[], Any]) -> Any:
        """Let a process execute a command on a server, unless something happens."""
        if wire.dead:
            raise Killed
        self.counts[wire.name] = self.counts.get(wire.name, 0) + 1
        self.commands.setdefault(wire.name, []).append(" ".join(str(args[0]) for args in commands))
        hit = not self.happened and wire.name == self.accident.victim and self.counts[wire.name] == self.accident.k
        if place in wire.broken:
            wire.broken.discard(place)
            raise wire.loss("broken")
        if hit and self.accident.before:
            self._strike(wire, place, commands)
        if self.shards.is_divided:
            wire.find(place, commands)
            self.shards.check(place, commands)
        wire.used.add(place)
        result = execute()
        if commands[0][0] == "GET" and str(commands[0][1]).endswith(":owner") and result:
            self.is_end_known |= ownership_in(result).is_over
        self.writes += self.shards.all[place].remember(commands, result)
        if hit and not self.accident.before:
            self._strike(wire, place, commands)
        return result

    def _strike(self, wire: "Wire", place: int, commands: Sequence[tuple[Any, ...]]) -> None:
        self.happened = True
        self.is_struck_at_its_end = self.shards.is_ending()
        match self.accident.kind:
            case "kill":
                wire.dead = True
                raise Killed
            case "cut":
                raise wire.loss("cut")
            case "forget" | "silent" if self.is_over or (self.accident.is_loss and self.is_end_known):
                pass  # then the end is forgotten, with nobody left to repeat it: the keys expire
            case "forget":
                self.forget(self.accident.forgets, self.accident.shard)
                self.cut(self.accident.shard)
                if place in wire.broken:
                    wire.broken.discard(place)
                    raise wire.loss("Redis was killed")
            case "silent":
                self.forget(self.accident.forgets, self.accident.shard)
            case "move":
                for key in keys_of(commands)[:1]:
                    self.shards.move(key)
            case "stop":
                stop_everything(self)
            case "freeze":
                assert self.frozen is not None
                self.frozen.freeze()

    def forget(self, writes: int, place: int = 0) -> None:
        """Let a server lose its last ``writes`` writes."""
        self.is_utmost = self.shards.all[place].forget(writes)

    def cut(self, place: int = 0) -> None:
        """Every connection to a server breaks."""
        for wire in self.wires:
            if place in wire.used:
                wire.broken.add(place)

    def counted(self) -> list[Execution]:
        """Return the executions without those that were undone.

        A large reply is in Redis before it is in the journal, and never on disk: a node that is killed in between
        executes the message again. A small one is in the journal before any command is sent.
        """
        if payload.INLINE:
            return self.executions
        starts: dict[tuple[int, str], int] = {}
        for each in self.executions:
            key = each.process, each.message_id
            starts[key] = max(starts.get(key, 0), each.starts)
        return [each for each in self.executions if each.starts == starts[each.process, each.message_id]]

    def release(self, key: str) -> None:
        """A lease lapses: its holder is gone."""
        self.shards.at(key).delete(key)


def stop_everything(world: World) -> None:
    """Stop whatever run there is."""
    connection = Connection(servers_of(world.shards), Keys(PREFIX), "admin")
    for run_id in going_on(connection):
        with suppress(RunNotFound):
            stop_run(connection, run_id, patience=0.1)
        for shard in world.shards.all:
            shard.log.clear()


def servers_of(shards: Shards) -> Servers:
    """Return the servers for somebody whom no accident concerns."""

    def make(place: int) -> Server:
        return Server(DirectClient(shards.all[place].server))

    return KnownShards(shards, make) if shards.is_divided else OneServer(DirectClient(shards.all[0].server))


# Connections.


class Wire:
    """One process's connections.

    Attributes:
        broken: the servers to which they are broken.
        used: the servers that were asked something.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.broken: set[int] = set()
        self.used: set[int] = set()
        self.servers: Servers
        if world.shards.is_divided:
            self.servers = KnownShards(world.shards, lambda place: Server(*self._make(place)))
        else:
            self.servers = OneServer(*self._make(0))
        self.connection = Connection(self.servers, Keys(PREFIX), name)

    def _make(self, place: int) -> tuple["_Client", "_Sockets"]:
        client = _Client(self.world.shards.all[place].server)
        client.wire, client.place = self, place
        return client, _Sockets(client, self, place)

    def command(self, place: int, commands: Sequence[tuple[Any, ...]], execute: Callable[[], Any]) -> Any:
        return self.world.command(self, place, commands, execute)

    def loss(self, text: str) -> ConnectionError:
        """Return the error of a connection that is lost: the socket is connected again with the next command."""
        if self.world.shards.is_divided:
            self.servers.lost()
        return ConnectionError(text)

    def find(self, place: int, commands: Sequence[tuple[Any, ...]]) -> None:
        """A server that does not have the key any more says so, and the others are looked up.

        Raises:
            AstrayError: the key is on another server.
        """
        shards = self.world.shards
        if shards.moved and any(shards.moved.get(tag_of(key)) == place for key in keys_of(commands)):
            self.servers.refresh()
            self.servers.lost()
            raise AstrayError(ResponseError("MOVED 1 elsewhere:1"))


class _Sockets(Sockets):
    """Sends one command after the other, each of which may be the fatal one; a MULTI … EXEC is one."""

    def __init__(self, client: Any, wire: Wire, place: int) -> None:
        super().__init__(client)
        self.wire = wire
        self.place = place

    def talk(self, socket: Any, commands: Sequence[Command]) -> list[Any]:
        answers: list[Any] = []
        while rest := commands[len(answers) :]:
            if rest[0] == ("MULTI",):
                within = rest[1 : rest.index(("EXEC",))]
                results, _ = self.transact_on(socket, within)
                answers += ["OK", *["QUEUED"] * len(within), results]
            else:
                answers.append(self.one(socket, rest[0]))
        return answers

    def one(self, socket: Any, args: Command) -> Any:
        def execute() -> Any:
            return Sockets.talk(self, socket, [unblocked])[0]

        unblocked, block = without_block(args)
        answer = self.wire.command(self.place, [args], execute)
        if answer or block is None or args[0] != "XREAD":
            return answer
        if not self.wire.world.run_nodes():
            self.wire.world.pass_time(block / 1000)
        return self.wire.command(self.place, [args], execute)

    def begin(self, socket: Any, commands: Sequence[Command]) -> Callable[[], list[Any]]:
        answers = self.talk(socket, commands)
        return lambda: answers

    def transact_on(
        self, socket: Any, commands: Sequence[Command], after: Sequence[Command] = ()
    ) -> tuple[list[Any] | None, list[Any]]:
        def execute() -> list[Any]:
            answers = Sockets.talk(self, socket, [("MULTI",), *commands, ("EXEC",)])
            if answers[-1] is None:
                raise WatchError
            if isinstance(answers[-1], Exception):
                raise answers[-1]
            return list(answers[-1])

        try:
            results = self.wire.command(self.place, commands, execute)
        except WatchError:
            results = None
        return results, self.talk(socket, after)

    def transact(self, transactions: Sequence[Sequence[Command]]) -> list[list[Any]]:
        with self._lent() as socket:
            results = [self.transact_on(socket, commands)[0] for commands in transactions]
        return [result or [] for result in results]

    def stream(self, commands: Sequence[Command], most: Sequence[int] = ()) -> Iterator[Any]:
        for args in commands:
            yield self.exchange([args])[0]


def without_block(args: Command) -> tuple[Command, int | None]:
    """Nothing blocks in one thread."""
    if "BLOCK" not in args:
        return args, None
    place = args.index("BLOCK")
    return (*args[:place], *args[place + 2 :]), int(args[place + 1])


class _Client(DirectClient):
    wire: Wire
    place: int

    def _send_command_parse_response(self, conn: Any, command_name: Any, *args: Any, **options: Any) -> Any:
        def execute() -> Any:
            return DirectClient._send_command_parse_response(self, conn, command_name, *args, **options)

        return self.wire.command(self.place, [args], execute)

    def pipeline(self, transaction: Any = True, shard_hint: Any = None) -> "_Pipeline":
        made = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        made.wire, made.place = self.wire, self.place
        return made


class _Pipeline(Pipeline):
    wire: Wire
    place: int

    def _send_command_parse_response(self, conn: Any, command_name: Any, *args: Any, **options: Any) -> Any:
        def execute() -> Any:
            return Pipeline._send_command_parse_response(self, conn, command_name, *args, **options)

        return self.wire.command(self.place, [args], execute)

    def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: Any) -> Any:
        def execute() -> Any:
            return Pipeline._execute_transaction(self, connection, commands, raise_on_error)

        watching = self.watching
        try:
            return self.wire.command(self.place, [args for args, _ in commands], execute)
        except ConnectionError:
            self.watching = watching  # the answer to EXEC has not come
            raise

    def _execute_pipeline(self, connection: Any, commands: Any, raise_on_error: Any) -> Any:
        def one(command: Any) -> Any:
            return Pipeline._execute_pipeline(self, connection, [command], False)[0]

        results = [self.wire.command(self.place, [each[0]], lambda each=each: one(each)) for each in commands]
        if raise_on_error:
            self.raise_first_error(commands, results)
        return results


# Processes.


class KeptJournal(Journal):
    """A journal in memory that outlives its process, as a file does."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[bytes, Any] = {}

    def open(self, identity: bytes) -> bool:
        self._db = self._kept.get(identity)
        if self._db is None:
            super().open(identity)
            self._kept[identity] = self._db
        return False

    def _close_file(self) -> None:
        self._db = None


class NodeProcess:
    """A node that is started again whenever it was killed."""

    def __init__(self, world: World, wire: str, name: str) -> None:
        self.world = world
        self.wire_name = wire
        self.name = name
        self.journal = KeptJournal()
        self.starts = 0
        self.frozen: Frozen | None = None
        self.has_left = False
        self.was_refused = False
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.wire = self.world.wire(self.wire_name)
        self.registration = Registration(self.wire.connection, self.name, home=self.wire_name)
        self.node = Node(self._app(), self.wire.connection, self.registration, journal=self.journal)
        self.publisher = publisher_of(self.node)
        self.is_registered = False

    def turn(self) -> None:
        """Let the node do one thing; in a thread while it may freeze."""
        if self.has_left or self.frozen is not None:
            return
        may_freeze = self.accident_is_near()
        if not may_freeze:
            self._turn()
            return
        frozen = self.world.frozen = Frozen(self._turn)
        if frozen.start():
            self.frozen = frozen
            self.world.replace(self)
        elif frozen.error is not None:
            raise frozen.error

    def accident_is_near(self) -> bool:
        accident = self.world.accident
        return accident.kind == "freeze" and accident.victim == self.wire_name and not self.world.happened

    def wake(self) -> None:
        """Let a frozen node go on."""
        frozen, self.frozen = self.frozen, None
        assert frozen is not None
        frozen.wake()
        assert frozen.error is None, frozen.error
        self.world.nodes.append(self)

    def renew(self) -> None:
        """What its heartbeat does, for those who look at its lease."""
        lease = Keys(PREFIX).node_lease(self.node.node_id)
        admin = self.world.shards.at(lease)
        if admin.get(lease) == self.registration._token.encode():
            admin.pexpire(lease, milliseconds(LEASE))

    def _turn(self) -> None:
        try:
            if not self.is_registered:
                self._register()
            if self.was_refused:
                self.has_left = True
            elif self.node.is_stopping():
                self.node.leave()
                self.has_left = True
            else:
                gathered = self.publisher._wake.is_set()
                self.node.turn(0.001)
                if gathered:
                    self._publish()
        except Killed:
            self.world.release(Keys(PREFIX).node_lease(self.node.node_id))
            self.start()

    def _publish(self) -> None:
        """What its thread does, one message later: replies gather for a moment."""
        self.publisher._wake.clear()
        try:
            self.publisher._flush_through_outage()
        except BrokerflError as error:
            fail_node(self.node, error)

    def _register(self) -> None:
        while not self.is_registered and not self.was_refused:
            try:
                self.node.register()
                self.is_registered = True
            except NodeNameTaken:  # whose place it was to take woke before it came
                self.was_refused = True
            except RedisUnreachable:  # whoever started it starts it again
                self.world.release(Keys(PREFIX).node_lease(self.node.node_id))

    def _app(self) -> ClientApp:
        """Counts and adds up in its state what it is sent; replies three times the value, and the running total."""
        app = ClientApp()
        process = id(self.journal)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            value = message.content.metrics_records["m"]["n"]
            assert isinstance(value, int)
            done = context.state.metrics_records.setdefault("done", MetricsRecord({"count": 0, "total": 0}))
            done["count"] += 1  # type: ignore[operator]
            done["total"] += value  # type: ignore[operator]
            meta = message.metadata
            self.world.executions.append(
                Execution(process, self.starts, context.node_id, meta.message_id, meta.group_id, value)
            )
            reply = number(3 * value)
            reply.metrics_records["done"] = MetricsRecord(dict(done))
            return message.create_reply(reply)

        return app


@dataclass
class Outcome:
    """What a ServerApp's main returned, and how often it was started."""

    result: Any = None
    starts: int = 0
    run_id: int = 0
    errors: list[str] = field(default_factory=list)


Program = Callable[[Driver, World, int], Any]


def serve(world: World, program: Program, outcome: Outcome, resume: int | None = None, name: str = "server") -> None:
    """Run a ServerApp until it has ended, starting it again whenever it was killed."""
    keys = Keys(PREFIX)
    while True:
        outcome.starts += 1
        wire = world.wire(name)
        try:
            driver = Driver(wire.connection, "app", resume=resume, takeover=name != "server")
            outcome.run_id = driver.run.run_id
            outcome.result = program(driver, world, outcome.starts)
            driver.end()
            return
        except Killed:
            resume = unfinished(world)
            if resume is None and outcome.result is not None:
                return
            if resume is not None:
                world.release(keys.run_lease(resume))
        except RunNotFound:  # whoever ended the run was killed or froze before all was deleted; it is now
            return
        except BrokerflError as error:
            if not isinstance(error.__cause__, ConnectionError) or outcome.run_id:
                raise
            resume = unfinished(world)  # the connection broke while the run was created: the user tries again
            if resume is not None:
                world.release(keys.run_lease(resume))


def play(accident: Accident, program: Program, nodes: int = 2) -> tuple[World, Outcome]:
    """Let a ServerApp and its nodes run through one accident; return what became of them."""
    world, outcome = World(accident, nodes), Outcome()
    enter(world)
    world.register_nodes()
    if accident.kind == "freeze" and accident.victim == "server":
        world.frozen = Frozen(lambda: serve(world, program, outcome))
        if world.frozen.start():
            resume = unfinished(world)
            successor = Outcome()
            if resume is not None:
                world.asleep.append(world.frozen)
                serve(world, program, successor, resume, "successor")
                world.finish()
            else:
                world.frozen.wake()
            if resume is not None and successor.run_id:
                assert isinstance(world.frozen.error, RunError), f"the frozen one went on: {world.frozen.error!r}"
                outcome = successor
            elif world.frozen.error is not None:
                raise world.frozen.error
    else:
        try:
            serve(world, program, outcome)
        except RunStopped:
            assert accident.kind == "stop"
    world.finish()
    return world, outcome


def unfinished(world: World) -> int | None:
    """Return the run that has not ended."""
    runs = Keys(PREFIX).runs
    for member, score in world.shards.at(runs).zrange(runs, 0, -1, withscores=True):
        key = Keys(PREFIX).owner(int(member))
        owner = world.shards.at(key).get(key)
        if score > 0 and owner is not None and not ownership_in(owner).is_over:
            return int(member)
    return None


class Frozen:
    """A victim in a thread of its own, which stops at an exact command until it is woken."""

    def __init__(self, victim: Callable[[], None]) -> None:
        self._asleep = threading.Event()
        self._awake = threading.Event()
        self.error: BaseException | None = None
        self._victim = victim
        self._froze = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> bool:
        """Run the victim until it freezes or ends; return whether it froze."""
        self._thread.start()
        assert self._asleep.wait(30)
        return self._froze

    def _run(self) -> None:
        try:
            self._victim()
        except BaseException as error:
            self.error = error
        finally:
            self._asleep.set()

    def freeze(self) -> None:
        """Called by the victim."""
        self._froze = True
        self._asleep.set()
        assert self._awake.wait(30)

    def wake(self) -> None:
        """Let the victim go on to its end."""
        self._awake.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the victim hangs"


@contextmanager
def payloads(are_chunked: bool) -> Iterator[None]:
    """Let every content, of a message, a reply or a state, travel as chunks, most of them as several; or as usual."""
    with pytest.MonkeyPatch.context() as patch:
        if are_chunked:
            patch.setattr(payload, "INLINE", 0)
            patch.setattr(manifest, "CHUNK", 32)
        yield


_entered: list[World] = []


def enter(world: World) -> None:
    """From now on the time is this world's."""
    _entered[:] = [world]


@contextmanager
def virtual_time() -> Iterator[None]:
    """Nothing sleeps, no heart beats, nobody logs: the clock is that of the world that was entered last."""

    def sleep(seconds: float) -> None:
        _entered[0].run_nodes()
        _entered[0].pass_time(max(seconds, 0.001))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: _entered[0].look_at_the_clock() if _entered else 0.0)
        patch.setattr(time, "sleep", sleep)
        patch.setattr(Heartbeat, "start", lambda self: None)
        patch.setattr(Publisher, "_start", lambda self: None)  # `NodeProcess` does what its thread does
        patch.setattr(hashing, "_hashers", _AtOnce())
        for name in ("_host", "_started"):  # which ask the system
            patch.setattr(identity, name, cache(getattr(identity, name)))
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
            _entered.clear()


class _AtOnce:
    """In the place of threads that hash."""

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(function(*args))
        return done


# The books.


def check_books(world: World, outcome: Outcome) -> None:
    """Every message was executed once, every state has what was executed in it, and no key of the run is left."""
    seen: dict[tuple[int, str], int] = {}
    for execution in world.counted():
        key = execution.process, execution.message_id
        seen[key] = seen.get(key, 0) + 1
    twice = [key for key, count in seen.items() if count > 1]
    assert not twice, f"executed more than once: {twice}"
    for process in world.nodes:
        identity = Keys(PREFIX).identity
        process.journal.open(world.shards.at(identity).get(identity) or b"")
        state = process.journal.state_of(outcome.run_id)
        done = {} if state is None else decode_content(state).metrics_records["done"]
        executed = [each.value for each in world.counted() if each.process == id(process.journal)]
        assert (done.get("count", 0), done.get("total", 0)) == (len(executed), sum(executed)), "a state is wrong"
    left = [key for key in world.shards.names() if str(outcome.run_id) in key]
    remains = {Keys(PREFIX).owner(outcome.run_id), *Keys(PREFIX).of_past(outcome.run_id)}  # a tombstone, and the past
    left = [key for key in left if key not in remains]
    if world.accident.is_loss and world.is_struck_at_its_end:
        # Nobody knows of a chunk whose deletion is forgotten now: it expires.
        left = [key for key in left if not (key.startswith(f"{PREFIX}:blob:") and world.shards.at(key).pttl(key) > 0)]
    assert not left, f"keys of the run are left: {left}"
    for key in map(Keys(PREFIX).node_runs, world.node_ids):
        assert not world.shards.at(key).hexists(key, str(outcome.run_id)), f"{key} still has the run"
    for key in world.shards.names():
        lasting = key in {f"{PREFIX}:id", f"{PREFIX}:nodes", f"{PREFIX}:runs"}
        assert lasting or world.shards.at(key).pttl(key) > 0, f"{key!r} has no lifetime"
