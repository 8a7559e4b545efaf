"""Fixtures that several modules of the contract use."""

from typing import Any

import pytest
from redis import Redis
from redis.client import Pipeline

from brokerfl.broker import sockets
from brokerfl.broker.sockets import Commands, Sockets
from brokerfl.wire import manifest, payload
from tests.stage import CHUNK, INLINE


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thousand bytes make many chunks, and memory comes in huge pages where it does for large arrays."""
    monkeypatch.setattr(payload, "INLINE", INLINE)
    monkeypatch.setattr(manifest, "CHUNK", CHUNK)
    monkeypatch.setattr(payload, "_HUGE", 4 * CHUNK)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the chunks that were sent."""
    keys: list[str] = []
    send = sockets._send

    def spy(socket: Any, commands: Any) -> Any:
        keys.extend(command[1] for command in commands if command[0] == "SET" and ":blob:" in command[1])
        return send(socket, commands)

    monkeypatch.setattr(sockets, "_send", spy)
    return keys


@pytest.fixture
def deleted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the chunks that were put into pipelines to be deleted."""
    keys: list[str] = []
    execute = Commands.execute_command

    def spy(pipe: Commands, *command: Any, **options: Any) -> Any:
        if command[0] == "UNLINK":
            keys.extend(key for key in command[1:] if isinstance(key, str) and ":blob:" in key)
        return execute(pipe, *command, **options)

    monkeypatch.setattr(Commands, "execute_command", spy)
    return keys


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the chunks that nodes asked for."""
    keys: list[str] = []
    stream = Sockets.stream

    def spy(sockets: Sockets, commands: Any, *most: Any) -> Any:
        keys.extend(command[1] for command in commands if command[0] == "GET" and ":blob:" in command[1])
        return stream(sockets, commands, *most)

    monkeypatch.setattr(Sockets, "stream", spy)
    return keys


@pytest.fixture
def issued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all commands that were issued, each of a pipeline too."""
    names: list[str] = []

    def spy(owner: type, method: str, named: Any) -> None:
        original = getattr(owner, method)

        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            names.extend(named(*arguments))
            return original(self, *arguments, **options)

        monkeypatch.setattr(owner, method, call)

    spy(Redis, "execute_command", lambda *command: [command[0]])
    spy(Pipeline, "execute_command", lambda *command: [command[0]])
    spy(Sockets, "talk", lambda _, commands: [command[0] for command in commands])
    spy(Sockets, "stream", lambda commands, most=(): [command[0] for command in commands])
    return names
