"""Fixtures that several modules of the contract use."""

from typing import Any

import pytest
from redis.client import Pipeline

from brokerfl.broker.sockets import Sockets
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
    """The keys of the chunks that were put into pipelines to be set."""
    keys: list[str] = []
    execute = Pipeline.execute_command

    def spy(pipe: Pipeline, *command: Any, **options: Any) -> Any:
        if command[0] == "SET" and ":blob:" in str(command[1]):
            keys.append(command[1])
        return execute(pipe, *command, **options)

    monkeypatch.setattr(Pipeline, "execute_command", spy)
    return keys


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the chunks that nodes asked for."""
    keys: list[str] = []
    stream = Sockets.stream

    def spy(sockets: Sockets, commands: Any) -> Any:
        keys.extend(command[1] for command in commands if command[0] == "GET")
        return stream(sockets, commands)

    monkeypatch.setattr(Sockets, "stream", spy)
    return keys
