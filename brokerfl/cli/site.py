"""The site of `brokerfl dashboard`: one page, and the JSON that it asks for once a second.

Owns the paths, whom they answer, and what a browser may do with them. It must not know Redis.
The page is read-only, keeps no cookie, and loads nothing from elsewhere.
"""

import base64
import hashlib
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.resources import files
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brokerfl.broker.keys import parse_id
from brokerfl.common import BrokerflError
from brokerfl.view.shape import sight_to_json, story_to_json
from brokerfl.view.story import Story
from brokerfl.view.watch import Sight

#: Seconds for requests under way at the end.
_GRACE = 5.0


def site(
    look: Callable[[], Sight],
    tell: Callable[[int], Story],
    url: str,
    hosts: Collection[str],
    *,
    any_address: bool = False,
) -> Starlette:
    """Return the application.

    Args:
        look: returns what is there; it may take some seconds.
        tell: returns what happened in a run; likewise.
        url: where Redis is, without its password.
        hosts: the names under which it answers. Others are refused: a page of somebody else whose name leads here
            (DNS rebinding) could read everything.
        any_address: also answer under every IP address, which is no name that leads anywhere else.
    """
    page = files("brokerfl.cli").joinpath("page.html").read_text(encoding="utf-8")

    def show(request: Request) -> Response:
        return HTMLResponse(page)

    def overview(request: Request) -> Response:  # no coroutine: starlette calls it in a thread
        return _Answer(sight_to_json(look(), url))

    def story(request: Request) -> Response:
        run_id = parse_id(request.path_params["run"].encode())
        if run_id is None:
            return _Answer({"error": "a run id is a number"}, 404)
        try:
            return _Answer(story_to_json(tell(run_id)))
        except BrokerflError as error:
            return _Answer({"error": str(error)}, 503)

    return Starlette(
        routes=[Route("/", show), Route("/api/overview", overview), Route("/api/runs/{run}", story)],
        middleware=[Middleware(_Guard, hosts=hosts, any_address=any_address, headers=_headers(page))],
    )


class _Answer(JSONResponse):
    """JSON in ASCII: what others wrote may have half a character, which UTF-8 cannot carry."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


@contextmanager
def serving(app: Starlette, listener: socket.socket) -> Iterator[tuple[int, Thread]]:
    """Serve the application in a thread during the block; yield its port and the thread."""
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    # In a thread of its own it leaves the signals alone. A daemon: a request may wait for Redis.
    thread = Thread(target=server.run, args=([listener],), name="dashboard", daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], thread
    finally:
        server.should_exit = True
        thread.join(_GRACE)


def _headers(page: str) -> dict[str, str]:
    """Return what every answer says: this page runs its own script and style, and nothing else."""
    hashes = {
        tag: " ".join(_hash_of(text) for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
        for tag in ("script", "style")
    }
    policy = {
        "default-src": "'none'",
        "script-src": hashes["script"],
        "style-src": hashes["style"],
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class _Guard:
    """Answers only under names that it was told, and adds headers to every answer.

    Starlette's TrustedHostMiddleware does not know IPv6 addresses.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], any_address: bool, headers: dict[str, str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._any_address = any_address
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        app = self._app
        if scope["type"] == "http" and not self._is_known(Headers(scope=scope).get("host", "")):
            app = PlainTextResponse(
                "This name is not known here. Start brokerfl dashboard with --allow-host NAME to answer to it.\n", 421
            )
        await app(scope, receive, send_with_headers)

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._hosts or (self._any_address and bool(ipaddress.ip_address(name)))
        except ValueError:
            return False
