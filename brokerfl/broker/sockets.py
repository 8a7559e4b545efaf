"""The sockets: commands of the message path, past redis-py's pool and pipelines.

Owns sockets that are kept from one command to the next. It must not know what the commands mean.

redis-py packs and parses here too, but its pool, its pipelines and what they measure for others cost more than the
commands that they carry: 350 µs for a WATCH and a MULTI of 11 commands, 180 µs so (two cores, redis-py 8.1).

Answers are as the server sends them, errors among them; everything here raises redis-py's errors.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from redis.client import Pipeline
from redis.exceptions import ResponseError

Command = Sequence[Any]

#: Bytes that are handed to the system in one piece: a socket's timeout is for the whole piece.
PIECE = 128 * 1024

#: Bytes a second, 256 kbit/s, of the slowest link on which chunks arrive: what was sent may be in the system's buffers
#: for so long before it can be answered. A host that is gone is noticed earlier, by TCP (`connection`).
SLOWEST = 32 * 1024


class Sockets:
    """The sockets of one connection. Safe to share between threads.

    Args:
        client: the redis-py client that makes them.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._idle: list[Any] = []

    def pipe(self) -> Pipeline:
        """Return something to put commands into, for `transact` and `exchange`."""
        return self._client.pipeline(transaction=False)  # type: ignore[no-any-return]

    def take(self) -> Any:
        """Return a socket of one's own, until `give` or `drop`."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._client.connection_pool.get_connection()

    def give(self, socket: Any) -> None:
        """Give a socket back on which no answer is missing."""
        self._idle.append(socket)

    def leave_one(self) -> None:
        """See that one is connected for others: an outage is seen by a socket that was there before it."""
        self.give(self.take())

    def drop(self, socket: Any) -> None:
        """Give a socket back that is broken, or on which answers are missing; the idle ones may be broken as well."""
        socket.disconnect()
        self._client.connection_pool.release(socket)
        self.close()

    def close(self) -> None:
        """Let go of the idle sockets."""
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

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands at once and return their answers."""
        with self._lent() as socket:
            return self.talk(socket, commands)

    def talk(self, socket: Any, commands: Sequence[Command]) -> list[Any]:
        """As `exchange`, on a socket that was taken."""
        packed = socket.pack_commands(commands)
        size = sum(map(len, packed))
        if size <= PIECE:
            socket.send_packed_command(packed, check_health=False)
            return [_answer(socket) for _ in commands]
        socket.send_packed_command(_pieces(packed), check_health=False)
        patience = (socket.socket_timeout or 0.0) + size / SLOWEST
        return [_answer(socket, timeout=patience) for _ in commands]

    def transact(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in a MULTI and return their answers.

        Raises:
            ResponseError: the server refused one before any was executed.
        """
        with self._lent() as socket:
            results, _ = self.transact_on(socket, commands)
            assert results is not None, "nothing is watched"
            return results

    def transact_on(
        self, socket: Any, commands: Sequence[Command], after: Sequence[Command] = ()
    ) -> tuple[list[Any] | None, list[Any]]:
        """As `transact`, on a socket that was taken, and send ``after`` behind it.

        Returns:
            The answers of ``commands``, None when a watched key had changed and nothing was executed; and those of
            ``after``.
        """
        answers = self.talk(socket, [("MULTI",), *commands, ("EXEC",), *after])
        executed = answers[len(commands) + 1]
        if isinstance(executed, Exception):  # of several the first says why
            raise next(answer for answer in answers if isinstance(answer, Exception))
        return executed, answers[len(commands) + 2 :]

    def stream(self, commands: Sequence[Command]) -> Iterator[Any]:
        """Send commands at once, and yield each answer when it has come: no two of them are in memory together.

        Of answers of 1 MiB a list of 16 takes four times as long, for each needs fresh memory.
        """
        socket, left = self.take(), len(commands)
        try:
            socket.send_packed_command(socket.pack_commands(commands), check_health=False)
            while left > 1:
                answer = _answer(socket)
                left -= 1
                yield answer
            answer = _answer(socket)
            left = 0
        except GeneratorExit:  # nobody wants the rest; a socket that is connected again would count as a loss
            with suppress(Exception):  # it broke, or is closed already
                while left:
                    _answer(socket)
                    left -= 1
            raise
        finally:
            if left:
                self.drop(socket)
            else:
                self.give(socket)
        yield answer


def _pieces(packed: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    for item in packed:
        if len(item) <= PIECE:
            yield item
            continue
        whole = memoryview(item)
        for start in range(0, len(whole), PIECE):
            yield whole[start : start + PIECE]


def _answer(socket: Any, **options: float) -> Any:
    try:
        return socket.read_response(**options)
    except ResponseError as error:
        return error


def commands_of(pipe: Pipeline) -> list[Command]:
    """Return the commands that were put into what `Sockets.pipe` returned."""
    return [arguments for arguments, _ in pipe.command_stack]
