"""What workers do while the database is away, for shorter and for longer than their lease."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import SCOPE, Work, eventually, pid_in, process_gone, runs
from worker_process import WorkerProcess

from intervaljob.embedded.postgres import Postgres
from intervaljob.embedded.processes import free_port
from intervaljob.recovery.detector import detect


@asynccontextmanager
async def operator(work: Work) -> AsyncIterator[None]:
    """An operator's detector at work."""
    task = asyncio.create_task(detect(work.database, scope=SCOPE, by="operator test"), name="detector")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def succeeded(work: Work) -> int:
    """The number of the attempt that has ended the only task."""

    async def look() -> int:
        return sum(row["attempt"] for row in await work.tasks() if row["status"] == "succeeded")

    return await eventually(look, what="the task has succeeded", within=15)


@pytest.fixture
def payload(tmp_path: Path) -> str:
    return json.dumps({"started": str(tmp_path / "started"), "go": str(tmp_path / "go")})


async def test_an_outage_shorter_than_the_lease_stops_nothing(
    postgres_server: Postgres, database_url: str, work: Work, payload: str, tmp_path: Path
) -> None:
    await work.enqueue(await work.add_job(handler="test.waits", payload=payload))
    async with operator(work), WorkerProcess(database_url, folder=tmp_path, lease_seconds=15) as process:
        pid = await pid_in(tmp_path / "started")
        await process.ready()
        assert "\nintervaljob_database_up 1.0\n" in (await process.get("/metrics"))[1]
        postgres_server.stop("immediate")
        try:
            await process.says("Lease not renewed")
            (tmp_path / "go").touch()  # the task ends while its end cannot be written
            status, text = await process.get("/readyz")
            assert status == 503
            assert "refused" in text or "closed the connection" in text
            assert "\nintervaljob_database_up 0.0\n" in (await process.get("/metrics"))[1]
            assert (await process.get("/healthz"))[0] == 200
        finally:
            postgres_server.start()
        assert await succeeded(work) == 1
        assert runs(pid)
        await process.ready()
    assert await work.recovery_jobs() == []
    (row,) = await work.execute("SELECT ended_at FROM {schema}.workers")
    assert row["ended_at"] is None


async def test_an_outage_longer_than_the_lease_stops_the_task_which_is_recovered_afterwards(
    postgres_server: Postgres, database_url: str, work: Work, payload: str, tmp_path: Path
) -> None:
    await work.enqueue(await work.add_job(handler="test.waits", payload=payload))
    async with operator(work), WorkerProcess(database_url, folder=tmp_path, lease_seconds=3) as process:
        pid = await pid_in(tmp_path / "started")
        postgres_server.stop("immediate")
        try:
            await process_gone(pid, within=3)
            await process.says("Incarnation over: every task was stopped")
        finally:
            postgres_server.start()
        (tmp_path / "go").touch()
        assert await succeeded(work) == 2
    (new,) = await work.recovery_jobs()
    # The outage was no time for the lease: the worker's new incarnation is what proves the old one dead.
    assert new["metadata"] == {"intervaljob:evidence": "superseded"}


async def test_a_worker_that_waits_for_the_database_heeds_sigterm(tmp_path: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    async with WorkerProcess(url, folder=tmp_path) as process:
        await process.says("Waiting for the database", within=20)
        assert (await process.get("/readyz"))[0] == 503
        process.signal(signal.SIGTERM)
        assert await process.ended(within=15) == 0


class LostAnswer:
    """A way to the database on which the answer to one claim is lost, with its connection."""

    def __init__(self, url: str) -> None:
        self._port = urlsplit(url).port
        self.lost = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[str]:
        """The URL that leads through here."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield url.replace(f":{self._port}/", f":{server.sockets[0].getsockname()[1]}/")
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer), name="connection"))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(_copy(there_reader, writer), name="back")
        try:
            while data := await reader.read(65_536):
                if b"began AS (" in data and not self.lost:
                    self.lost += 1
                    back.cancel()
                    await asyncio.gather(back, return_exceptions=True)
                    there_writer.write(data)
                    await there_reader.read(65_536)  # the database has committed
                    return
                there_writer.write(data)
        except ConnectionError:
            pass
        finally:
            back.cancel()
            for each in (writer, there_writer):
                each.close()
                with suppress(ConnectionError):
                    await each.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)


async def test_a_claim_whose_answer_was_lost_is_given_back_and_run(
    database_url: str, work: Work, tmp_path: Path
) -> None:
    await work.enqueue(await work.add_job(payload="7"))
    lossy = LostAnswer(database_url)
    async with lossy.open(database_url) as url, WorkerProcess(url, folder=tmp_path, lease_seconds=3600):
        assert await succeeded(work) == 2
    assert lossy.lost == 1
    (new,) = await work.recovery_jobs()
    assert new["metadata"] == {"intervaljob:evidence": "claim_lost"}
