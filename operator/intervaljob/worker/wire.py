"""Messages between the processes of one worker: JSON objects, each behind its length in four bytes."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

Message = dict[str, Any]

_LENGTH = struct.Struct("!I")


def encode(message: Message) -> bytes:
    """One message as it goes over the wire."""
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Messages of a stream that comes in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Those that are whole with this piece."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) >= start + _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                body = bytes(self._buffer[start + _LENGTH.size : end])
                start = end
                yield _object(body)
        finally:
            del self._buffer[:start]


def reader(connection: socket.socket) -> BufferedReader:
    """A blocking socket, to `receive` from."""
    return connection.makefile("rb")


def receive(stream: BufferedReader) -> Message | None:
    """The next message, None at the end of the stream."""
    try:
        head = stream.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        body = stream.read(length)
    except ConnectionError:
        return None
    return _object(body) if length and len(body) == length else None


def _object(body: bytes) -> Message:
    message = json.loads(body)
    assert isinstance(message, dict)
    return message
