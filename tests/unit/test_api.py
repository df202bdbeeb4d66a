"""How the operator reads lists and watches: within its memory, and never waiting for a watch that has gone silent."""

import asyncio
import json
from typing import Any, cast
from uuid import uuid4

import aiohttp
import pytest

from intervaljob.controller import api
from intervaljob.controller.api import Api, _lines

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


class _Pages(Api):
    """IntervalJobs with payloads of this size, in pages of the size that is asked for."""

    def __init__(self, count: int, payload: int) -> None:
        self._left = count
        self._payload = "x" * payload
        self.sizes: list[int] = []

    async def _read(self, path: str, **options: Any) -> bytes:  # noqa: ARG002 - Api's
        count = min(self._left, options["limit"])
        self._left -= count
        more = {"continue": "more"} if self._left else {}
        body = json.dumps({"metadata": more, "items": [self._object() for _ in range(count)]}).encode()
        self.sizes.append(len(body))
        return body

    def _object(self) -> dict[str, Any]:
        metadata = {"namespace": "default", "name": "one", "generation": 1, "resourceVersion": "1"}
        time = {"creationTimestamp": "2026-01-01T00:00:00Z"}
        return {"metadata": {"uid": str(uuid4()), **metadata, **time}, "spec": {"payload": self._payload}}


@pytest.mark.parametrize(("payload", "requests"), [(0, range(2, 5)), (250_000, range(50, 70))])
async def test_pages_are_as_large_as_memory_allows(payload: int, requests: range) -> None:
    pages = _Pages(1000, payload)
    found = [one.uid async for page in pages.pages(namespace=None) for one in page]
    assert len(set(found)) == 1000
    assert len(pages.sizes) in requests
    assert max(pages.sizes[1:]) <= api.PAGE_BYTES + 1000
