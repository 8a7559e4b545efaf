"""A lossy TCP proxy: what networks do to connections, on command or at random.

Owns the faults. It must not know Redis, but for one rule: a client asks, and the server answers. It listens on the
loopback interface, in a thread of its own; the server behind it may go away and come back on its port.
"""

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_CHUNK = 1 << 16
_NO_LINGER = struct.pack("ii", 1, 0)  # a close sends RST, and what is still on its way is lost

#: What the weather does to a request or an answer, and how often: let it wait; lose it and the connection; lose its
#: second half and the connection; let it wait so long that the client may have given up.
_WEATHER = {"delay": 20, "lose": 4, "cut": 4, "stall": 1}
_SECONDS = {"delay": (0.0, 0.05), "stall": (1.0, 10.0)}


class _Connection:
    """One client's connection, and what happens to it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.moving = asyncio.Event()
        self.moving.set()
        self.keep: int | None = None  # how much of the next answer arrives before the connection breaks
        self.task = asyncio.current_task()

    def reset(self) -> None:
        for writer in (self.client, self.server):
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()


class Proxy:
    """Stands between any number of clients and one server, until `close`.

    Args:
        upstream: the server's port on the loopback interface.
        seed: of the weather.
        rate: bytes a second that a client's connection carries towards the server; None for as many as come.

    Attributes:
        port: where clients connect; ``url`` says it as clients of Redis want it.
        faults: how often each fault came.
        delay: seconds that each piece of an answer is held back.
        weather: the share of requests and answers that something happens to; see `_WEATHER`.
    """

    def __init__(self, upstream: int, seed: int = 0, rate: float | None = None) -> None:
        self.faults: Counter[str] = Counter()
        self.delay = 0.0
        self.weather = 0.0
        self._upstream = upstream
        self._rate = rate
        self._random = random.Random(seed)
        self._connections: set[_Connection] = set()
        self._orders: list[tuple[bytes, Callable[[_Connection], object]]] = []
        self._is_down = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        listening = socket.create_server(("127.0.0.1", 0))
        if rate is not None:  # or megabytes are on their way
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK)
        self._listener = self._wait(asyncio.start_server(self._serve, sock=listening))
        self.port = self._listener.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"

    # Faults on command.

    def cut(self) -> None:
        """Reset every connection now."""
        self._do(self._cut)

    def break_answer(self, request: bytes = b"", keep: int = 0) -> None:
        """Break a connection in the answer to the next request that holds ``request``: it was executed all the same.

        Args:
            request: bytes, such as ``b"EXEC"``.
            keep: bytes of the answer that still arrive.
        """
        self._do(lambda: self._orders.append((request, lambda connection: setattr(connection, "keep", keep))))

    def hold(self, request: bytes) -> None:
        """Stall the next connection that sends a request with these bytes, before it arrives."""
        self._do(lambda: self._orders.append((request, self._stall)))

    def stall(self) -> None:
        """Make every present connection half-open: nothing moves and nothing closes. New connections work."""
        self._do(lambda: [self._stall(connection) for connection in self._connections])

    def release(self) -> None:
        """Let stalled connections move again: what their clients had sent arrives, even if they have given up."""
        self._do(lambda: [connection.moving.set() for connection in self._connections])

    def down(self) -> None:
        """Reset every connection, and each new one at once."""
        self._is_down = True
        self.cut()

    def up(self) -> None:
        """Let new connections live again."""
        self._is_down = False

    # The thread.

    def close(self) -> None:
        """End every connection and the thread."""
        self._is_down = True
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _do(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        self._wait(act())

    async def _end(self) -> None:
        self._listener.close()
        while len(tasks := asyncio.all_tasks()) > 1:
            self._cut()
            await asyncio.wait(tasks - {asyncio.current_task()}, timeout=0.01)

    def _cut(self) -> None:
        for connection in self._connections:
            self.faults["cut on command"] += 1
            connection.task.cancel()

    def _stall(self, connection: _Connection) -> None:
        self.faults["stall on command"] += 1
        connection.moving.clear()

    # Traffic.

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            if self._is_down:
                raise ConnectionRefusedError
            answers, server = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            self.faults["refused"] += 1
            client.transport.abort()
            return
        connection = _Connection(client, server)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_requests(connection, reader))
                both.create_task(self._pass_answers(connection, answers))
        except* (OSError, asyncio.CancelledError):  # it broke, or was cut
            pass
        finally:
            self._connections.discard(connection)
            connection.reset()

    async def _pass_requests(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(_CHUNK):
            for order in [order for order in self._orders if order[0] in chunk][:1]:
                self._orders.remove(order)
                order[1](connection)
            await connection.moving.wait()
            if self._rate is not None:
                await asyncio.sleep(len(chunk) / self._rate)
            await self._send(connection.server, chunk, "request")
        connection.server.close()

    async def _pass_answers(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(_CHUNK):
            await connection.moving.wait()
            await asyncio.sleep(self.delay)
            if connection.keep is not None:
                await self._break(connection.client, chunk[: connection.keep], "break on command")
            await self._send(connection.client, chunk, "answer")
        connection.client.close()

    async def _send(self, writer: asyncio.StreamWriter, chunk: bytes, what: str) -> None:
        if self._random.random() < self.weather:
            fault = self._random.choices(list(_WEATHER), list(_WEATHER.values()))[0]
            if fault in ("lose", "cut"):
                await self._break(writer, chunk[: len(chunk) // 2 if fault == "cut" else 0], f"{fault} {what}")
            self.faults[f"{fault} {what}"] += 1
            await asyncio.sleep(self._random.uniform(*_SECONDS[fault]))
        writer.write(chunk)
        await writer.drain()

    async def _break(self, writer: asyncio.StreamWriter, chunk: bytes, fault: str) -> None:
        self.faults[fault] += 1
        writer.write(chunk)
        await writer.drain()
        raise ConnectionResetError(fault)  # `_serve` resets the connection
