"""Messages between the processes of one worker: JSON, each behind its length in four bytes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from io import BufferedReader
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from intervaljob.model.task import Attempt, Result

_LENGTH = struct.Struct("!I")

M = TypeVar("M")


class Given(Struct, frozen=True, array_like=True, gc=False):
    """An attempt to run when its turn comes; `ticket` names it among those that this executor is given."""

    ticket: int
    attempt: Attempt


class Run(Struct, frozen=True, tag=True):
    """To an executor: these, in this order, after those that it was given before."""

    given: list[Given]


class Cancel(Struct, frozen=True, tag=True):
    """To an executor: the handler of this attempt is to stop. One that has ended meanwhile does not notice."""

    ticket: int


class Return(Struct, frozen=True, tag=True):
    """To an executor: give back whatever has not begun."""


class Deadline(Struct, frozen=True, tag=True):
    """To an executor: the lease was renewed until `at`, a boot time."""

    at: float


class Saved(Struct, frozen=True, tag=True):
    """To an executor: whether the checkpoint of this number was stored."""

    number: int
    ok: bool


class Ended(Struct, frozen=True, tag=True, gc=False):
    """From an executor: what came of an attempt."""

    ticket: int
    result: Result


class Checkpoint(Struct, frozen=True, tag=True):
    """From an executor: JSON to store for an attempt; the handler waits for the answer."""

    ticket: int
    number: int
    data: str


class Returned(Struct, frozen=True, tag=True):
    """From an executor: these will not begin."""

    tickets: list[int]


ToExecutor = Run | Cancel | Return | Deadline | Saved
ToManager = Ended | Checkpoint | Returned

to_executor: msgspec.json.Decoder[ToExecutor] = msgspec.json.Decoder(ToExecutor)
to_manager: msgspec.json.Decoder[ToManager] = msgspec.json.Decoder(ToManager)
_encoder = msgspec.json.Encoder()


def encode(message: ToExecutor | ToManager) -> bytes:
    """One message as it goes over the wire."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Stream(Generic[M]):
    """Messages of a stream that comes in pieces."""

    def __init__(self, decoder: msgspec.json.Decoder[M]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
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
                yield self._decoder.decode(body)
        finally:
            del self._buffer[:start]


def reader(connection: socket.socket) -> BufferedReader:
    """A blocking socket, to `receive` from."""
    return connection.makefile("rb")


def receive(stream: BufferedReader, decoder: msgspec.json.Decoder[M]) -> M | None:
    """The next message, None at the end of the stream."""
    try:
        head = stream.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        body = stream.read(length)
    except ConnectionError:
        return None
    return decoder.decode(body) if length and len(body) == length else None
