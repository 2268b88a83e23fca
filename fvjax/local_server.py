"""A web server for this computer alone: where it listens, and which requests it answers."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
Message = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
# The page may load nothing from elsewhere, be no part of another page, and leave no copy on the disk of the browser.
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'; "
        "base-uri 'self'; form-action 'self'"
    ),
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def listen(port: int) -> socket.socket:
    """Listen on a port of this computer; 0 means any free one. Raises ValueError: no such port, or one in use."""
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port={port}: choose one from 1024 to 65535, or 0 for any free one")
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not in use any more, but still remembered
    try:
        server.bind((HOST, port))
        server.listen()
    except OSError as error:
        server.close()
        remedy = "choose another one, or --port=0 for any free one"
        raise ValueError(f"--port={port}: cannot be used ({error.strerror}); {remedy}") from None
    return server


class LocalOnly:
    """An ASGI application that passes on what comes from its own page, and refuses the rest.

    A server on 127.0.0.1 can be reached by every page that the browser of this computer has open. So the request must
    name this computer as the host, which a foreign name that leads here (DNS rebinding) does not; and if it names a
    page that it comes from, that must be this one. A body that is larger than `max_body` bytes, or of unknown size, is
    refused before it is read, and so are the paths that are `closed`.
    """

    def __init__(self, application: Application, port: int, max_body: int, closed: Sequence[str] = ()):
        self._application, self._max_body, self._closed = application, max_body, tuple(closed)
        self._hosts = {f"{name}:{port}" for name in NAMES}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        if not self._is_ours(scope["headers"]):
            await _refuse(send, 403, "this page answers requests of its own computer only")
            return
        if scope["path"].rstrip("/") in self._closed:
            await _refuse(send, 404, "there is no such page")
            return
        if not self._is_small(scope["headers"]):
            await _refuse(send, 413, "this request is too large")
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.encode(): value.encode() for name, value in HEADERS.items()}
                others = [(name, value) for name, value in message["headers"] if name.lower() not in own]
                message["headers"] = [*others, *own.items()]
            await send(message)

        await self._application(scope, receive, send_with_headers)

    def _is_ours(self, headers: Headers) -> bool:
        hosts, origins = _values(headers, b"host"), _values(headers, b"origin")
        return len(hosts) == 1 and hosts[0] in self._hosts and self._origins.issuperset(origins)

    def _is_small(self, headers: Headers) -> bool:
        sizes = _values(headers, b"content-length")
        known = not _values(headers, b"transfer-encoding") and all(size.isdigit() for size in sizes)
        return known and all(int(size) <= self._max_body for size in sizes)


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for key, value in headers if key.lower() == name]


async def _refuse(send: Send, status: int, text: str) -> None:
    body = f"{text}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
