from __future__ import annotations

import asyncio
import http.client
import re
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from intervaljob.errors import SettingsError
from intervaljob.telemetry import metrics, probes

if TYPE_CHECKING:
    from collections.abc import Callable


def fine() -> str | None:
    return None


def get(port: int, path: str, *, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode(), dict(response.getheaders())
    finally:
        connection.close()


async def exchange(port: int, data: bytes) -> bytes:
    """Everything that the server answers to these bytes, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(("path", "other"), [("/healthz", "/readyz"), ("/readyz", "/healthz")])
async def test_each_probe_answers_for_itself(path: str, other: str) -> None:
    checks: dict[str, Callable[[], str | None]] = {"/healthz": fine, "/readyz": fine}
    checks[path] = lambda: "the database is away"
    async with probes.serve("127.0.0.1:0", live=checks["/healthz"], ready=checks["/readyz"]) as port:
        status, body, headers = await asyncio.to_thread(get, port, path)
        assert (status, body) == (503, "the database is away\n")
        assert headers["Connection"] == "close"
        status, body, _ = await asyncio.to_thread(get, port, f"{other}?verbose")
        assert (status, body) == (200, "ok\n")


async def test_a_probe_is_asked_anew_for_each_request() -> None:
    troubles = iter([None, "draining", None])
    async with probes.serve("127.0.0.1:0", live=fine, ready=lambda: next(troubles)) as port:
        statuses = [(await asyncio.to_thread(get, port, "/readyz"))[0] for _ in range(3)]
    assert statuses == [200, 503, 200]


async def test_metrics_are_what_prometheus_reads() -> None:
    metrics.DATABASE_UP.set(1)
    async with probes.serve("127.0.0.1:0", live=fine, ready=fine) as port:
        status, body, headers = await asyncio.to_thread(get, port, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert families["intervaljob_database_up"].samples[0].value == 1
    assert set(families["intervaljob_build_info"].samples[0].labels) == {"version", "python"}
    ours = [family for name, family in families.items() if name.startswith("intervaljob_")]
    assert all(family.documentation for family in ours)


async def test_other_paths_and_methods_are_refused() -> None:
    async with probes.serve("127.0.0.1:0", live=fine, ready=fine) as port:
        assert (await asyncio.to_thread(get, port, "/"))[0] == 404
        assert (await asyncio.to_thread(get, port, "/healthz/x"))[0] == 404
        status, _, headers = await asyncio.to_thread(lambda: get(port, "/healthz", method="POST"))
        assert (status, headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize(
    "data", [b"\r\n\r\n", b"GET /healthz\r\n\r\n", b"GET / x HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n"]
)
async def test_what_is_not_http_is_refused(data: bytes) -> None:
    async with probes.serve("127.0.0.1:0", live=fine, ready=fine) as port:
        assert (await exchange(port, data)).startswith(b"HTTP/1.1 400 ")


async def test_a_header_over_the_limit_is_refused() -> None:
    request = b"GET /healthz HTTP/1.1\r\nX: " + b"x" * probes.MAX_HEADER_BYTES
    async with probes.serve("127.0.0.1:0", live=fine, ready=fine) as port:
        assert (await exchange(port, request)).startswith(b"HTTP/1.1 431 ")


async def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "CONNECTION_SECONDS", 0.05)
    async with probes.serve("127.0.0.1:0", live=fine, ready=fine) as port:
        assert await exchange(port, b"GET /healthz HTTP/1.1\r\n") == b""


async def test_a_client_that_goes_away_disturbs_nobody() -> None:
    async with probes.serve("127.0.0.1:0", live=fine, ready=fine) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /heal")
        writer.close()
        await writer.wait_closed()
        assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 200


async def test_a_probe_that_raises_answers_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str | None:
        raise ValueError("boom")

    async with probes.serve("127.0.0.1:0", live=broken, ready=fine) as port:
        assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 500
        assert (await asyncio.to_thread(get, port, "/readyz"))[0] == 200
    assert [record.message for record in caplog.records] == ["Probe failed"]


async def test_leaving_closes_the_port_and_open_connections() -> None:
    async with probes.serve("127.0.0.1:0", live=fine, ready=fine) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.to_thread(get, port, "/healthz")  # by now the first connection is accepted as well
    async with asyncio.timeout(1):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_client_that_does_not_read_holds_nothing_up() -> None:
    trouble = "x" * 50_000_000
    async with asyncio.timeout(30):
        async with probes.serve("127.0.0.1:0", live=lambda: trouble, ready=fine) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
            writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        with suppress(ConnectionResetError):  # the kernel may drop what it still holds
            assert len(await reader.read()) < len(trouble)
        writer.transport.abort()


async def test_the_bodys_own_error_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with probes.serve("127.0.0.1:0", live=fine, ready=fine):
            raise KeyError("mine")


@pytest.mark.parametrize(
    "address", ["", "8080", ":8080", "host", "host:", "host:x", "host:-1", "host:65536", "h:٣", "h:" + "9" * 5000]
)
async def test_an_address_that_cannot_be_read_names_the_setting(address: str) -> None:
    with pytest.raises(SettingsError, match=r"^http_address: .*host:port"):
        async with probes.serve(address, live=fine, ready=fine):
            pass


async def test_a_port_that_is_taken_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsError, match=rf"^http_address: cannot listen on {re.escape(address)}: "):
            async with probes.serve(address, live=fine, ready=fine):
                pass


async def test_an_ipv6_address_stands_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")
    async with probes.serve("[::1]:0", live=fine, ready=fine) as port:
        reader, writer = await asyncio.open_connection("::1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await reader.read()).endswith(b"ok\n")
        writer.close()
        await writer.wait_closed()
