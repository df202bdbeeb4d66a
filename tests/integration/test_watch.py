"""What is watched and what is compared meet in the rows: an edit never waits, and nothing is missed or brought back."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException
from support import SCOPE, AddJob, Execute, eventually

from intervaljob.controller import reconciler as reconciler_module
from intervaljob.controller import watch as watch_module
from intervaljob.controller.api import BOOKMARK, Api
from intervaljob.controller.events import Announcer
from intervaljob.controller.reconciler import Key, Reconciler
from intervaljob.controller.watch import Watch
from intervaljob.database.connection import Database
from intervaljob.model.custom_resource import IntervalJob

Event = tuple[str, dict[str, Any]]


def body(
    name: str, *, uid: UUID | None = None, version: int = 1, generation: int = 1, payload: str = ""
) -> dict[str, Any]:
    """An IntervalJob as the API server sends it."""
    return {
        "metadata": {
            "uid": str(uid or uuid4()),
            "namespace": "default",
            "name": name,
            "generation": generation,
            "resourceVersion": str(version),
            "creationTimestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        },
        "spec": {"interval": "1h", "handler": "echo", "payload": payload},
    }


class Scripted(Api):
    """An API server whose pages come when the test says so, and whose watch says what the test puts into it."""

    def __init__(self, api_client: client.ApiClient) -> None:
        super().__init__(api_client)
        self.shown: list[list[dict[str, Any]]] = []
        self.there: dict[str, dict[str, Any]] = {}
        self.next_page = asyncio.Semaphore(0)
        self.events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.versions_asked = 0
        self.watched_from: list[str] = []
        self.lists = 0
        self.listed = 0

    async def version(self, *, namespace: str | None) -> str:  # noqa: ARG002 - Api's
        self.versions_asked += 1
        return "100"

    async def pages(self, *, namespace: str | None) -> AsyncGenerator[list[IntervalJob], None]:  # noqa: ARG002 - Api's
        self.lists += 1
        for page in self.shown:
            await self.next_page.acquire()
            yield [IntervalJob.from_body(one) for one in page]
        self.listed += 1

    async def watch(self, *, namespace: str | None, version: str) -> AsyncGenerator[Event, None]:  # noqa: ARG002 - Api's
        self.watched_from.append(version)
        while True:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            yield event

    async def get(self, *, namespace: str, name: str) -> IntervalJob | None:  # noqa: ARG002 - Api's
        return IntervalJob.from_body(self.there[name]) if name in self.there else None


@pytest.fixture
async def api() -> AsyncIterator[Scripted]:
    async with client.ApiClient() as api_client:
        yield Scripted(api_client)


@asynccontextmanager
async def watching(database: Database, api: Scripted) -> AsyncIterator[None]:
    """A watch and its reconciler, running."""
    reconciler = Reconciler(database, api, scope=SCOPE, announcer=Announcer(api), changed=lambda: None)
    watch = Watch(database, api, reconciler, scope=SCOPE, namespace=None, resync_seconds=300)
    tasks = [asyncio.create_task(duty(), name="duty") for duty in (reconciler.run, watch.run)]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def rows(execute: Execute) -> Callable[[], Any]:
    """Names and payloads of the jobs that are there."""

    async def read() -> dict[str, str]:
        found = await execute("SELECT name, payload FROM {schema}.jobs WHERE deleted_at IS NULL")
        return {row["name"]: row["payload"] for row in found}

    return read


async def test_an_edit_takes_effect_while_others_are_still_compared(
    database: Database, api: Scripted, rows: Callable[[], Any]
) -> None:
    """Also one that the list has not come to; and the list, which is older, does not take it back."""
    early, late = body("early"), body("late")
    api.shown = [[early], [late]]
    edited = body("late", uid=UUID(late["metadata"]["uid"]), version=101, generation=2, payload="edited")
    async with watching(database, api):
        api.next_page.release()
        await eventually(lambda: _is(rows, {"early": ""}), what="the first page is written")
        api.events.put_nowait(("MODIFIED", edited))
        await eventually(lambda: _is(rows, {"early": "", "late": "edited"}), what="the edit is written")
        api.next_page.release()
        await eventually(lambda: api.listed, what="the list is through")
        assert await rows() == {"early": "", "late": "edited"}


async def test_what_was_deleted_since_the_list_began_is_not_brought_back(
    database: Database, api: Scripted, execute: Execute, rows: Callable[[], Any]
) -> None:
    """The last page of a list shows what was there when the first was asked for."""
    doomed = body("doomed")
    api.shown = [[doomed], [doomed, body("other")]]
    async with watching(database, api):
        api.next_page.release()
        await eventually(lambda: _is(rows, {"doomed": ""}), what="it is written")
        api.events.put_nowait(("DELETED", doomed))
        await eventually(lambda: _is(rows, {}), what="its row is retired")
        api.next_page.release()
        await eventually(lambda: _is(rows, {"other": ""}), what="the list is through")


async def test_rows_without_a_resource_are_asked_for_after_the_list(
    database: Database, api: Scripted, add_job: AddJob, rows: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "ROWS", 2)
    monkeypatch.setattr(reconciler_module, "WAITING", 2)
    for number in range(5):
        await add_job(name=f"gone-{number}")
    api.shown = [[body("there")]]
    async with watching(database, api):
        api.next_page.release()
        await eventually(lambda: _is(rows, {"there": ""}), what="the others are retired")


async def test_a_watch_goes_on_where_it_was_cut_off(
    database: Database, api: Scripted, rows: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a comparison, which is dear; a bookmark counts, too."""
    monkeypatch.setattr(watch_module, "RETRY_SECONDS", 0.01)
    async with watching(database, api):
        api.there["one"] = body("one", version=105)
        api.events.put_nowait(("ADDED", api.there["one"]))
        await eventually(lambda: _is(rows, {"one": ""}), what="it is written")
        api.events.put_nowait(ConnectionError("cut off"))
        api.events.put_nowait((BOOKMARK, {"metadata": {"resourceVersion": "107"}}))
        api.events.put_nowait(ConnectionError("cut off"))
        await eventually(lambda: len(api.watched_from) == 3, what="watched again")
        assert api.watched_from == ["100", "105", "107"]
        assert (api.versions_asked, api.lists) == (1, 1)


async def test_a_watch_from_too_long_ago_has_everything_compared(
    database: Database, api: Scripted, rows: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "RETRY_SECONDS", 0.01)
    async with watching(database, api):
        await eventually(lambda: api.lists == 1, what="compared at start")
        api.shown = [[body("missed")]]
        api.next_page.release()
        api.events.put_nowait(ApiException(status=410, reason="Gone"))
        await eventually(lambda: _is(rows, {"missed": ""}), what="compared again")
        assert api.versions_asked == 2


async def test_what_waits_is_bounded(database: Database, api: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees more than that waits until some have been written."""
    monkeypatch.setattr(reconciler_module, "WAITING", 10)
    one = Reconciler(database, api, scope=SCOPE, announcer=Announcer(api), changed=lambda: None)
    for number in range(9):
        one.see(IntervalJob.from_body(body(f"job-{number}")))
    await asyncio.wait_for(one.has_room(), 1)
    one.miss(Key(uuid4(), "default", "gone"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.has_room(), 0.05)
    await one._step()
    await asyncio.wait_for(one.has_room(), 1)


async def test_a_status_is_written_first_where_an_edit_was_watched(
    database: Database, api: Scripted, execute: Execute
) -> None:
    """What is found by the comparison at start is many, and nobody looks at it."""
    one = Reconciler(database, api, scope=SCOPE, announcer=Announcer(api), changed=lambda: None)
    await one.compare([IntervalJob.from_body(body("compared"))])
    one.see(IntervalJob.from_body(body("watched")))
    await one._step()
    watched = await execute(
        "SELECT name FROM {schema}.job_status JOIN {schema}.jobs ON id = job_id WHERE watched_until > now()"
    )
    assert [row["name"] for row in watched] == ["watched"]


async def _is(rows: Callable[[], Any], expected: dict[str, str]) -> bool:
    return bool(await rows() == expected)
