"""Objects of an API server by HTTP, many at once."""

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from intervaljob.embedded.control_plane import ControlPlane

PARALLEL = 32
INTERVALJOBS = "/apis/intervaljob.dev/v1alpha1/namespaces/default/intervaljobs"
CRONJOBS = "/apis/batch/v1/namespaces/default/cronjobs"

Request = Callable[[aiohttp.ClientSession, str], Awaitable[None]]


class Cluster:
    """Objects of one kind, found at `url`; `uids` are those that are there, by name."""

    def __init__(self, control_plane: ControlPlane, url: str = INTERVALJOBS) -> None:
        self.uids: dict[str, str] = {}
        self._url = url
        self._server = control_plane.server
        settings = client.Configuration()
        asyncio.run(config.load_kube_config(str(control_plane.kubeconfig), client_configuration=settings))
        self._tls = ssl.create_default_context(cafile=settings.ssl_ca_cert)
        assert settings.cert_file is not None
        self._tls.load_cert_chain(settings.cert_file, settings.key_file)

    def create(self, count: int, body: Mapping[str, Any]) -> None:
        """So many like this, `bench-000000` and on."""

        async def one(session: aiohttp.ClientSession, name: str) -> None:
            async with session.post(self._url, json={**body, "metadata": {"name": name}}) as answer:
                self.uids[name] = (await answer.json())["metadata"]["uid"]

        self._each([f"bench-{number:06d}" for number in range(count)], one)

    def patch(self, names: Sequence[str], body: dict[str, Any]) -> None:
        """Merge this into each of them."""

        async def one(session: aiohttp.ClientSession, name: str) -> None:
            headers = {"Content-Type": "application/merge-patch+json"}
            async with session.patch(f"{self._url}/{name}", json=body, headers=headers):
                pass

        self._each(names, one)

    def delete(self, names: Sequence[str]) -> None:
        """Delete each of them."""

        async def one(session: aiohttp.ClientSession, name: str) -> None:
            async with session.delete(f"{self._url}/{name}"):
                del self.uids[name]

        self._each(names, one)

    def status(self, name: str) -> dict[str, Any]:
        """The status of one."""
        found: dict[str, Any] = {}

        async def one(session: aiohttp.ClientSession, name: str) -> None:
            async with session.get(f"{self._url}/{name}") as answer:
                found.update((await answer.json()).get("status", {}))

        self._each([name], one)
        return found

    def writes(self) -> dict[str, float]:
        """Answered requests that write, by what they write: the API server's own count."""
        found: dict[str, float] = {}
        texts: list[str] = []

        async def one(session: aiohttp.ClientSession, path: str) -> None:
            async with session.get(path) as answer:
                texts.append(await answer.text())

        self._each(["/metrics"], one)
        for line in re.findall(r"^apiserver_request_total\{.*$", texts[0], re.MULTILINE):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["verb"] in ("POST", "PUT", "PATCH", "APPLY", "DELETE"):
                key = " ".join(filter(None, (labels["verb"], labels["resource"], labels["subresource"])))
                found[key] = found.get(key, 0.0) + float(line.rpartition(" ")[2])
        return found

    def watch(self, url: str, seen: Callable[[dict[str, Any]], None], *, seconds: float) -> None:
        """Hand on each event at this url for so long; one is at most 16 MB."""

        async def listen() -> None:
            async with self._session(read_bufsize=2**24, timeout=aiohttp.ClientTimeout(total=None)) as session:
                query = {"watch": "1", "timeoutSeconds": str(int(seconds))}
                async with session.get(url, params=query) as answer:
                    async for line in answer.content:
                        seen(json.loads(line))

        asyncio.run(listen())

    def _each(self, names: Iterable[str], one: Request) -> None:
        waiting = iter(names)

        async def work(session: aiohttp.ClientSession) -> None:
            for name in waiting:
                await one(session, name)

        async def every() -> None:
            async with self._session() as session, asyncio.TaskGroup() as group:
                for number in range(PARALLEL):
                    group.create_task(work(session), name=f"client {number}")

        asyncio.run(every())

    @asynccontextmanager
    async def _session(self, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.TCPConnector(ssl=self._tls)
        async with aiohttp.ClientSession(
            self._server, connector=connector, raise_for_status=True, **options
        ) as session:
            yield session
