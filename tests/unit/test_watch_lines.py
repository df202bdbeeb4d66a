"""How the operator reads a watch: line by line, however long, and never waiting for one that has gone silent."""

import asyncio
from typing import cast

import aiohttp
import pytest

from intervaljob.controller import api
from intervaljob.controller.api import _lines

LONG = b"x" * 600_000


class _Response:
    """A response whose content comes in these chunks, and then stays silent or ends."""

    def __init__(self, *chunks: bytes, ends: bool = True) -> None:
        self.content = self
        self._chunks = [*chunks, *([b""] if ends else [])]

    async def readany(self) -> bytes:
        if not self._chunks:
            await asyncio.Event().wait()
        return self._chunks.pop(0)


async def read(*chunks: bytes, ends: bool = True) -> list[bytes]:
    response = cast("aiohttp.ClientResponse", _Response(*chunks, ends=ends))
    return [line async for line in _lines(response)]


async def test_a_line_may_come_in_pieces_and_be_longer_than_aiohttp_reads() -> None:
    """An IntervalJob may have a payload of 256 KiB, which JSON may make six times as long."""
    assert await read(b"a\nb", b"c\n", b"\n" + LONG, LONG, b"\nd\n") == [b"a", b"bc", b"", LONG + LONG, b"d"]


async def test_a_watch_that_ends_within_a_line_was_cut_off() -> None:
    with pytest.raises(ConnectionError):
        await read(b"a\nb")


async def test_a_silent_watch_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SILENT_SECONDS", 0.05)
    with pytest.raises(TimeoutError):
        await read(b"a\n", ends=False)
