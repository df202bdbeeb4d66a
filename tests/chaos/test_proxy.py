"""The proxy that lies between a process and its Postgres: what it does to connections when it is told to."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from chaos.proxy import Proxy, proxy_loop

Echo = tuple[tuple[str, int], list[bytes]]


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    """A server that answers with what it gets; its address, and what it got."""
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(100):
                got.append(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname(), got


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    with proxy_loop() as loop:
        made = await asyncio.to_thread(Proxy, loop, target=echo[0])
        yield made
        await asyncio.to_thread(made.refuse)


class Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def hears(self, *, within: float = 5.0) -> bytes | None:
        """None when nothing comes; empty when the connection has ended."""
        try:
            async with asyncio.timeout(within):
                return await self._reader.read(100)
        except TimeoutError:
            return None
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._writer.close()


async def client(proxy: Proxy) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", proxy.port))


async def test_it_passes_everything_until_it_is_told_not_to(echo: Echo, proxy: Proxy) -> None:
    one = await client(proxy)
    await one.say(b"hello")
    assert await one.hears() == b"hello"
    one.close()


async def test_a_stalled_one_keeps_what_is_said_until_it_is_healed(echo: Echo, proxy: Proxy) -> None:
    one = await client(proxy)
    await asyncio.to_thread(proxy.stall)
    await one.say(b"hello")
    assert await one.hears(within=0.2) is None
    assert echo[1] == []
    await asyncio.to_thread(proxy.heal)
    assert await one.hears() == b"hello"
    one.close()


async def test_one_that_keeps_answers_passes_what_is_said(echo: Echo, proxy: Proxy) -> None:
    one = await client(proxy)
    await asyncio.to_thread(proxy.stall_answers)
    await one.say(b"commit")
    assert await one.hears(within=0.2) is None
    assert echo[1] == [b"commit"]
    await asyncio.to_thread(proxy.heal)
    assert await one.hears() == b"commit"
    one.close()


@pytest.mark.parametrize("how", ["drop", "refuse"])
async def test_a_reset_ends_connections_and_healing_lets_new_ones_in(proxy: Proxy, how: str) -> None:
    one = await client(proxy)
    await one.say(b"hello")
    assert await one.hears() == b"hello"
    await asyncio.to_thread(getattr(proxy, how))
    assert await one.hears() == b""
    if how == "refuse":
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port), timeout=1)
    await asyncio.to_thread(proxy.heal)
    other = await client(proxy)
    await other.say(b"again")
    assert await other.hears() == b"again"
    one.close()
    other.close()


async def test_forgotten_connections_stay_silent_while_new_ones_pass(echo: Echo, proxy: Proxy) -> None:
    one = await client(proxy)
    await one.say(b"hello")
    assert await one.hears() == b"hello"
    await asyncio.to_thread(proxy.forget)
    await one.say(b"lost")
    other = await client(proxy)
    await other.say(b"again")
    assert await other.hears() == b"again"
    assert await one.hears(within=0.2) is None
    await asyncio.to_thread(proxy.heal)
    assert await one.hears() == b""
    one.close()
    other.close()


async def test_what_is_held_back_arrives_when_it_is_healed_also_from_a_client_that_is_gone(
    echo: Echo, proxy: Proxy
) -> None:
    one, other = await client(proxy), await client(proxy)
    await asyncio.to_thread(proxy.hold_back, b"the end")
    await one.say(b"this is the end")
    await other.say(b"something else")
    assert await other.hears() == b"something else"
    one.close()
    assert echo[1] == [b"something else"]
    await asyncio.to_thread(proxy.heal)
    async with asyncio.timeout(5):
        while len(echo[1]) < 2:
            await asyncio.sleep(0.01)
    assert echo[1][1] == b"this is the end"
    other.close()
