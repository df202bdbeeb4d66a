"""What the watch of worker Pods makes of an API server's answers, and what a condemned worker process does."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client
from support import Work, eventually, pid_in, process_gone, runs
from worker_process import WorkerProcess

from intervaljob.controller.api import Api
from intervaljob.controller.pods import PodWatch
from intervaljob.embedded.postgres import Postgres
from intervaljob.worker.incarnation import Incarnation

Json = dict[str, Any]


class Pods:
    """An API server that knows the Pods of the namespace `workers` and nothing else, and may be told to misbehave."""

    def __init__(self) -> None:
        self.lists = 0
        self.refuse_with: int | None = None
        self.expired = False
        self._pods: dict[str, Json] = {}
        self._watches: list[asyncio.Queue[Json | None]] = []

    def put(self, uid: str, *, finished_at: datetime | None = None, **annotations: str) -> None:
        """A Pod as its kubelet reports it: it runs, or its container has terminated then."""
        kind = "MODIFIED" if uid in self._pods else "ADDED"
        self._pods[uid] = _pod(uid, finished_at, annotations)
        self._send(kind, self._pods[uid])

    def delete(self, uid: str, *, finished_at: datetime | None = None) -> None:
        """It is gone; its last state is this."""
        del self._pods[uid]
        self._send("DELETED", _pod(uid, finished_at, {}))

    def unlabel(self, uid: str) -> None:
        """It no longer matches the selector."""
        self._send("DELETED", self._pods[uid])

    def cut(self) -> None:
        """End every watch."""
        for watch in self._watches:
            watch.put_nowait(None)
        self._watches.clear()

    @property
    def watched(self) -> int:
        return len(self._watches)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.refuse_with is not None:
            return web.json_response({"kind": "Status", "code": self.refuse_with}, status=self.refuse_with)
        if "fieldSelector" in request.query:
            name = request.query["fieldSelector"].removeprefix("metadata.name=")
            return _page([pod for uid, pod in self._pods.items() if uid == name])
        assert request.query["labelSelector"] == "intervaljob.dev/component=worker"
        if "watch" not in request.query:
            self.lists += 1
            return _page(list(self._pods.values()))
        return await self._watch(request)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        if self.expired:
            self.expired = False
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return response
        events: asyncio.Queue[Json | None] = asyncio.Queue()
        self._watches.append(events)
        while (event := await events.get()) is not None:
            await response.write(json.dumps(event).encode() + b"\n")
        await response.write(b'{"type": "MOD')  # a connection breaks anywhere
        return response

    def _send(self, kind: str, pod: Json) -> None:
        for watch in self._watches:
            watch.put_nowait({"type": kind, "object": pod})


def _pod(uid: str, finished_at: datetime | None, annotations: dict[str, str]) -> Json:
    state: Json = {"running": {}}
    if finished_at is not None:
        state = {"terminated": {"finishedAt": finished_at.strftime("%Y-%m-%dT%H:%M:%SZ")}}
    return {
        "metadata": {"uid": uid, "name": uid, "annotations": annotations},
        "spec": {"containers": [{"name": "worker"}]},
        "status": {"containerStatuses": [{"name": "worker", "state": state}]},
    }


def _page(pods: list[Json]) -> web.Response:
    return web.json_response({"metadata": {"resourceVersion": "1"}, "items": pods})


@pytest.fixture
async def pods(monkeypatch: pytest.MonkeyPatch) -> Pods:
    """That API server, with no Pods yet."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return Pods()


@pytest.fixture
async def _watch(work: Work, pods: Pods) -> AsyncIterator[None]:
    """An operator's watch of these Pods, at work."""
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/workers/pods", pods.answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with client.ApiClient(client.Configuration(host=f"http://{host}:{port}")) as api_client:
        watch = PodWatch(work.database, Api(api_client), namespace="workers")
        task = asyncio.create_task(watch.run(), name="pods")
        await eventually(lambda: pods.watched or task.done(), what="the Pods are watched")
        yield
        assert not task.done(), "the watch has ended"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    pods.cut()
    await runner.cleanup()


def later() -> datetime:
    """A time by which every worker of the test's process had started."""
    return datetime.now(UTC) + timedelta(seconds=1)


async def reason(work: Work, worker: Incarnation) -> tuple[str | None, str | None]:
    """Why the worker was ended, and why condemned."""
    (row,) = await work.execute(
        "SELECT end_reason, condemned_reason FROM {schema}.workers WHERE id = %(id)s", id=worker.id
    )
    return row["end_reason"], row["condemned_reason"]


async def becomes(work: Work, worker: Incarnation, expected: tuple[str | None, str | None]) -> None:
    async def look() -> bool:
        return await reason(work, worker) == expected

    await eventually(look, what=f"the worker is {expected}")


UNHARMED = (None, None)
TERMINATED = ("container_terminated", None)
CONDEMNED = (None, "pod_gone")


@pytest.mark.usefixtures("_watch")
async def test_a_container_that_terminates_ends_its_worker_and_no_other(work: Work, pods: Pods) -> None:
    one, two = await work.worker(pod_uid="one"), await work.worker(pod_uid="two")
    pods.put("one", large="x" * 500_000)
    pods.put("two", finished_at=datetime(2026, 1, 1, tzinfo=UTC))  # an earlier container of its Pod
    pods.put("one", finished_at=later())
    await becomes(work, one, TERMINATED)
    assert await reason(work, two) == UNHARMED


@pytest.mark.usefixtures("_watch")
async def test_a_deleted_pod_ends_what_is_known_to_have_terminated_and_condemns_the_rest(
    work: Work, pods: Pods
) -> None:
    ended, runs_still, successor = [await work.worker(pod_uid=uid) for uid in ("ended", "runs", "successor")]
    for uid in ("ended", "runs", "successor"):
        pods.put(uid)
    pods.delete("ended", finished_at=later())
    pods.delete("runs")
    pods.delete("successor", finished_at=datetime(2026, 1, 1, tzinfo=UTC))  # the container before the worker's
    await becomes(work, successor, CONDEMNED)
    assert await reason(work, ended) == ("pod_gone", None)
    assert await reason(work, runs_still) == CONDEMNED


@pytest.mark.parametrize("how", ["the connection breaks", "the version is too old"])
@pytest.mark.usefixtures("_watch")
async def test_what_was_missed_is_found_by_listing_again(work: Work, pods: Pods, how: str) -> None:
    workers = {uid: await work.worker(pod_uid=uid) for uid in ("gone", "dead", "well", "another cluster's")}
    for uid in ("gone", "dead", "well"):
        pods.put(uid)
    pods.cut()
    await eventually(lambda: pods.lists == 2 and pods.watched, what="listed again")
    pods.refuse_with = 503
    pods.cut()
    pods.delete("gone")
    pods.put("dead", finished_at=later())
    pods.expired = how == "the version is too old"
    lists = pods.lists
    pods.refuse_with = None
    await becomes(work, workers["dead"], TERMINATED)
    await becomes(work, workers["gone"], CONDEMNED)
    await eventually(lambda: pods.watched, what="watched again")
    assert pods.lists - lists == (2 if how == "the version is too old" else 1)
    assert await reason(work, workers["well"]) == UNHARMED
    assert await reason(work, workers["another cluster's"]) == UNHARMED


@pytest.mark.usefixtures("_watch")
async def test_a_pod_that_lost_its_label_is_not_gone(work: Work, pods: Pods) -> None:
    unlabelled, deleted = await work.worker(pod_uid="unlabelled"), await work.worker(pod_uid="deleted")
    pods.put("unlabelled")
    pods.put("deleted")
    pods.unlabel("unlabelled")
    pods.delete("deleted")
    await becomes(work, deleted, CONDEMNED)
    assert await reason(work, unlabelled) == UNHARMED


@pytest.mark.parametrize("status", [403, 410, 500])
@pytest.mark.usefixtures("_watch")
async def test_an_api_server_that_refuses_is_asked_again(
    work: Work, pods: Pods, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await work.worker(pod_uid="one")
    pods.refuse_with = status
    pods.cut()
    await eventually(lambda: "Cannot watch worker Pods" in caplog.text, what="a warning")
    pods.put("one", finished_at=later())
    pods.refuse_with = None
    await becomes(work, worker, TERMINATED)


@pytest.mark.parametrize("change", ["terminated", "deleted"])
@pytest.mark.usefixtures("_watch")
async def test_what_is_seen_while_the_database_is_away_is_done_when_it_is_back(
    *, postgres_server: Postgres, work: Work, pods: Pods, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    worker = await work.worker(pod_uid="one")
    pods.put("one")
    pods.cut()
    await eventually(lambda: pods.lists == 2 and pods.watched, what="the Pod is known")
    caplog.clear()
    postgres_server.stop("immediate")
    try:
        if change == "terminated":
            pods.put("one", finished_at=later())
        else:
            pods.delete("one")
        await eventually(lambda: "Cannot watch worker Pods" in caplog.text, what="a warning", within=20)
    finally:
        postgres_server.start()
    await becomes(work, worker, TERMINATED if change == "terminated" else CONDEMNED)


Condemn = Callable[[Work, WorkerProcess], Awaitable[None]]


@pytest.fixture
def payload(tmp_path: Path) -> str:
    return json.dumps({"started": str(tmp_path / "started"), "go": str(tmp_path / "go")})


async def by_notification(work: Work, process: WorkerProcess) -> None:
    await work.database.fetch("condemn_workers_of_pods", pod_uids=["pod-1"], reason="pod_gone")


async def unheard(work: Work, process: WorkerProcess) -> None:
    await work.execute("UPDATE {schema}.workers SET condemned_reason = 'pod_gone'")


async def while_it_drains(work: Work, process: WorkerProcess) -> None:
    """As after `kubectl delete --force` on a node that is well."""
    process.signal(signal.SIGTERM)
    await process.says("Draining")
    await by_notification(work, process)


@pytest.mark.parametrize(
    ("condemn", "lease_seconds"), [(by_notification, 600), (unheard, 3), (while_it_drains, 600)], ids=str
)
async def test_a_condemned_worker_stops_its_handlers_says_goodbye_and_exits(
    *, database_url: str, work: Work, payload: str, tmp_path: Path, condemn: Condemn, lease_seconds: int
) -> None:
    await work.enqueue(await work.add_job(handler="test.waits_sync", payload=payload))
    async with WorkerProcess(
        database_url, folder=tmp_path, pod_uid="pod-1", lease_seconds=lease_seconds, drain_seconds=600
    ) as process:
        pid = await pid_in(tmp_path / "started")
        await process.ready()
        listening = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%worker_condemned%'"
        await eventually(lambda: work.execute(listening), what="the worker listens")
        assert runs(pid)
        await condemn(work, process)
        assert await process.ended() == 0
        await process_gone(pid)
    (row,) = await work.execute("SELECT * FROM {schema}.workers")
    assert row["end_reason"] == "pod_gone"
    assert await work.recover() == 1
    (task,) = await work.tasks()
    assert (task["status"], task["worker_id"]) == ("recovering", row["id"])
