"""Probes: `/healthz`, `/readyz` and `/metrics` over HTTP/1.1, so that a worker needs no web server."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from intervaljob.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    #: None while all is well, else one line that says what is not.
    Check: TypeAlias = Callable[[], str | None]

MAX_HEADER_BYTES = 8 * 1024
CONNECTION_SECONDS = 5.0
_MAX_PORT = 65_535
_PLAIN = "text/plain; charset=utf-8"

logger = logging.getLogger(__name__)


@asynccontextmanager
async def serve(address: str, *, live: Check, ready: Check) -> AsyncIterator[int]:
    """Serve on `address` ("host:port", port 0 for any) while the context is open; yields the port.

    Raises SettingsError where the address cannot be read or listened on.
    """
    host, port = _host_port(address)
    probes = _Probes(live=live, ready=ready)
    try:
        server = await asyncio.start_server(probes.accept, host, port, limit=MAX_HEADER_BYTES)
    except OSError as error:
        raise SettingsError(f"http_address: cannot listen on {address}: {error.strerror or error}") from error
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await probes.close()
        await server.wait_closed()


class _Probes:
    """The connections of one server."""

    def __init__(self, *, live: Check, ready: Check) -> None:
        self._checks = {"/healthz": live, "/readyz": ready}
        self._connections: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._connections.discard(task)
            writer.transport.abort()

        task = asyncio.create_task(self._serve(reader, writer), name="probe")
        self._connections.add(task)
        task.add_done_callback(ended)

    async def close(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close: probes and scrapes are rare enough for a connection each."""
        try:
            async with asyncio.timeout(CONNECTION_SECONDS):
                writer.write(self._response(await _request_line(reader)))
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side is slow or gone; there is nobody to tell

    def _response(self, request: str | None) -> bytes:
        if request is None:
            return _message(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        match request.split(" "):
            case ["GET", target, "HTTP/1.1" | "HTTP/1.0"]:
                try:
                    return self._get(target.partition("?")[0])
                except Exception:
                    logger.exception("Probe failed", extra={"path": target})
                    return _message(HTTPStatus.INTERNAL_SERVER_ERROR)
            case [_, _, "HTTP/1.1" | "HTTP/1.0"]:
                return _message(HTTPStatus.METHOD_NOT_ALLOWED, headers="Allow: GET\r\n")
            case _:
                return _message(HTTPStatus.BAD_REQUEST)

    def _get(self, path: str) -> bytes:
        if path == "/metrics":
            return _message(HTTPStatus.OK, generate_latest(), content_type=CONTENT_TYPE_LATEST)
        if path not in self._checks:
            return _message(HTTPStatus.NOT_FOUND)
        trouble = self._checks[path]()
        if trouble is None:
            return _message(HTTPStatus.OK, b"ok\n")
        return _message(HTTPStatus.SERVICE_UNAVAILABLE, f"{trouble}\n".encode())


async def _request_line(reader: asyncio.StreamReader) -> str | None:
    """The first line of a whole header, or None where the header is too large."""
    try:
        header = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return None
    return header.partition(b"\r\n")[0].decode("latin-1")


def _message(status: HTTPStatus, body: bytes | None = None, *, content_type: str = _PLAIN, headers: str = "") -> bytes:
    body = f"{status.phrase}\n".encode() if body is None else body
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{headers}"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdecimal()) or int(port[:6]) > _MAX_PORT:
        raise SettingsError(f"http_address: {address!r} is not host:port, e.g. 0.0.0.0:8080 or [::]:8080")
    return host, int(port)
