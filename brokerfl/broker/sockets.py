"""The sockets: commands of the message path, without redis-py's pool and pipelines.

Owns sockets that are kept from one command to the next, and how long an answer is awaited. It must not know
what the commands mean.

redis-py still packs and parses, but its pool, its pipelines and their metrics cost more than the commands themselves:
a WATCH and a MULTI of 11 commands take 350 µs with them and 180 µs without (two cores, redis-py 8.1).

Answers are as the server sends them, including errors; everything here raises redis-py's errors.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any
from weakref import WeakSet

from redis.client import Pipeline
from redis.commands.core import CoreCommands
from redis.exceptions import RedisError, ResponseError

from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.patience import time_left

Command = Sequence[Any]

#: Bytes of commands from which on there is more time for their answers.
_LARGE = 128 * 1024

#: Bytes per second (256 kbit/s) of the slowest supported link. What was sent may leave the system's buffers as
#: slowly as that before it can be answered. TCP notices earlier if a host is gone (`connection`).
SLOWEST = 32 * 1024


class Commands(CoreCommands):
    """Commands that are put together as in a pipeline of redis-py, which is slower.

    A pipeline also has a finalizer: an exception that a signal handler raises there is lost.
    """

    _event_dispatcher: Any = None

    def __init__(self) -> None:
        self.command_stack: list[tuple[Command, Any]] = []

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Append a command."""
        self.command_stack.append((args, options))
        return self


class Sockets:
    """The sockets of one connection. Safe to share between threads.

    Args:
        client: the redis-py client that makes them.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._idle: list[Any] = []
        _made.add(self)

    def pipe(self) -> Pipeline:
        """Return what commands are put into, for `transact` and `exchange`."""
        return Commands()  # type: ignore[return-value]

    def take(self) -> Any:
        """Return a socket that belongs to the caller until `give` or `drop`."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._client.connection_pool.get_connection()

    def give(self, socket: Any) -> None:
        """Return a socket that has no answers outstanding. One of a server that is not used any more is closed."""
        if isinstance(socket, self._client.connection_pool.connection_class):
            self._idle.append(socket)
        else:
            socket.disconnect()

    def introduce(self, name: str) -> None:
        """Give the idle sockets a name."""
        if self._idle:
            with self._lent() as socket:
                self.introduce(name)
                self.talk(socket, [("CLIENT", "SETNAME", name)])

    def leave_one(self) -> None:
        """Keep a connected socket for others: only a socket that was connected before an outage notices it."""
        self.give(self.take())

    def drop(self, socket: Any) -> None:
        """Return a socket that is broken or has answers outstanding; close the idle ones, which may be broken, too."""
        socket.disconnect()
        self._client.connection_pool.release(socket)
        self.close()

    def close(self) -> None:
        """Close the idle sockets."""
        while self._idle:
            socket = self._idle.pop()
            socket.disconnect()
            self._client.connection_pool.release(socket)

    @contextmanager
    def _lent(self) -> Iterator[Any]:
        socket = self.take()
        try:
            yield socket
        except ResponseError:  # an answer as any other
            self.give(socket)
            raise
        except BaseException:
            self.drop(socket)
            raise
        self.give(socket)

    def exchange(self, commands: Sequence[Command], most: Sequence[int] = ()) -> list[Any]:
        """Send commands at once and return their answers. For ``most`` see `stream`."""
        if most:
            return [*self.stream(commands, most)]
        with self._lent() as socket:
            return self.talk(socket, commands)

    def talk(self, socket: Any, commands: Sequence[Command]) -> list[Any]:
        """Like `exchange`, on a socket that was taken."""
        return _send(socket, commands)()

    def begin(self, socket: Any, commands: Sequence[Command]) -> Callable[[], list[Any]]:
        """Like `talk`, but return what reads the answers."""
        return _send(socket, commands)

    def start(self, commands: Sequence[Command]) -> tuple["Sockets", Any, Callable[[], list[Any]]]:
        """Like `begin`, on a socket that is taken; return also whose it is, and the socket."""
        socket = self.take()
        try:
            return self, socket, self.begin(socket, commands)
        except BaseException:
            self.drop(socket)
            raise

    def transact(self, transactions: Sequence[Sequence[Command]]) -> list[list[Any]]:
        """Run each of these in a MULTI of its own, all in one round trip, and return their answers.

        Raises:
            ResponseError: the server refused one of them before any of its commands was executed.
        """
        with self._lent() as socket:
            answers = iter(self.talk(socket, [each for one in transactions for each in (_MULTI, *one, _EXEC)]))
            return [_executed([*islice(answers, len(one) + 2)]) for one in transactions]

    def transact_on(
        self, socket: Any, commands: Sequence[Command], after: Sequence[Command] = ()
    ) -> tuple[list[Any] | None, list[Any]]:
        """Like `transact`, on a socket that was taken, and send ``after`` behind it.

        Returns:
            The answers to ``commands``, None if a watched key had changed and nothing was executed; and those to
            ``after``.
        """
        answers = self.talk(socket, [_MULTI, *commands, _EXEC, *after])
        end = len(commands) + 2
        return _executed(answers[:end]), answers[end:]

    def stream(self, commands: Sequence[Command], most: Sequence[int] = ()) -> Generator[Any, None, None]:
        """Send commands at once, and yield each answer when it arrives, so that only one is in memory at a time.

        A list of 16 answers of 1 MiB takes four times as long, because each needs new memory.

        Args:
            commands: what to send. If an answer is cut off, what follows is sent again: it must be safe to repeat.
            most: bytes of each answer. In the place of one that has over 64 KiB more comes an `OversizeError`. What
                is behind the last of these has no limit.
        """
        socket, left = self.take(), len(commands)
        limits = iter(most)
        try:
            socket.send_packed_command(socket.pack_commands(commands), check_health=False)
            read = _reader(socket)
            while left > 1:
                answer = _answer_within(next(limits, None), socket, read)
                if isinstance(answer, OversizeError):
                    _send_anew(socket, commands[1 - left :])
                left -= 1
                yield answer
            answer = _answer_within(next(limits, None), socket, read)
            if isinstance(answer, OversizeError):
                _send_anew(socket)
            left = 0
        except GeneratorExit:  # the rest is not needed, but dropping the socket would count as a loss
            with suppress(Exception):  # it broke, or is already closed
                while left:
                    if isinstance(_answer_within(next(limits, None), socket, read), OversizeError):
                        _send_anew(socket)
                        left = 1
                    left -= 1
            raise
        finally:
            if left:
                self.drop(socket)
            else:
                self.give(socket)
        yield answer


_MULTI, _EXEC = ("MULTI",), ("EXEC",)


def _executed(answers: list[Any]) -> Any:
    """Return what EXEC answered; of several errors the first says why."""
    if isinstance(answers[-1], Exception):
        raise next(answer for answer in answers if isinstance(answer, Exception))
    return answers[-1]


_made: WeakSet[Sockets] = WeakSet()


def _forget() -> None:
    """The idle sockets are the parent's: a forked process only closes its copies."""
    for sockets in list(_made):
        sockets._idle.clear()


os.register_at_fork(after_in_child=_forget)


def _send(socket: Any, commands: Sequence[Command]) -> Callable[[], list[Any]]:
    """Send commands and return what reads their answers."""
    packed = socket.pack_commands(commands)
    size = sum(map(len, packed))
    socket.send_packed_command(packed, check_health=False)
    if size <= _LARGE:
        read = _reader(socket)
        return lambda: [_answer(read) for _ in commands]
    patience = (socket.socket_timeout or 0.0) + size / SLOWEST
    return lambda: [_answer(socket.read_response, timeout=patience) for _ in commands]


def _reader(socket: Any) -> Callable[..., Any]:
    """Return what reads one answer; only a thread whose patience has an end asks for it each time."""
    read: Callable[..., Any] = socket.read_response
    return read if time_left() is not None else getattr(socket, "read_patiently", read)


def _answer(read: Callable[..., Any], **options: float) -> Any:
    try:
        return read(**options)
    except ResponseError as error:
        return error


def _answer_within(most: int | None, socket: Any, read: Callable[..., Any]) -> Any:
    """Read one answer, but no more than ``most`` bytes of it."""
    limit = getattr(socket, "limit", None)
    if most is None or limit is None:  # fakeredis has no sockets
        return _answer(read)
    limit(most)
    try:
        return _answer(read)
    except OversizeError as error:
        return error
    finally:
        limit(None)


def _send_anew(socket: Any, commands: Sequence[Command] = ()) -> None:
    """Connect a socket again on which an answer was cut off, and send what follows."""
    socket.was_cut = True
    socket.connect()
    if commands:
        socket.send_packed_command(socket.pack_commands(commands), check_health=False)


def commands_of(pipe: Pipeline) -> list[Command]:
    """Return the commands that were put into what `Sockets.pipe` returned."""
    return [arguments for arguments, _ in pipe.command_stack]


def exchange_all(parts: Sequence[tuple[Sockets, Sequence[Command]]]) -> list[list[Any]]:
    """Send commands to several servers, all before the first answer is read, and return the answers of each.

    Raises:
        RedisError: of the first server that failed, after the answers of the others were read.
    """
    begun: list[tuple[Sockets, Any, Callable[[], list[Any]]]] = []
    answers, failures = [], []
    try:
        for sockets, commands in parts:
            try:
                begun.append(sockets.start(commands))
            except RedisError as error:
                failures.append(error)
        while begun:
            sockets, socket, read = begun[0]
            try:
                answers.append(read())
                sockets.give(socket)
            except RedisError as error:
                failures.append(error)
                sockets.drop(socket)
            del begun[0]
    finally:
        for sockets, socket, _ in begun:  # interrupted: they have answers outstanding
            sockets.drop(socket)
    if failures:
        raise failures[0]
    return answers
