"""What an operator asks of a database in which nothing happens: every IntervalJob's status is written, none is due."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from kubernetes.aio import client
from support import SCOPE, AddJob, Execute

from intervaljob.controller.api import Api
from intervaljob.controller.events import Announcer
from intervaljob.controller.reconciler import Reconciler
from intervaljob.controller.status_writer import StatusWriter
from intervaljob.database.connection import Database, Row, Session
from intervaljob.recovery.detector import detect
from intervaljob.scheduler.scheduler import Scheduler

SECONDS = 5.5


async def test_an_operator_at_rest_asks_little(
    database: Database, execute: Execute, add_job: AddJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.fetch("touch_statuses", jobs=[await add_job()])
    await execute("UPDATE {schema}.job_status SET written_revision = revision")
    asked: Counter[str] = Counter()
    fetch = Session.fetch

    async def counting(session: Session, query: str, /, **parameters: Any) -> list[Row]:
        asked[query] += 1
        return await fetch(session, query, **parameters)

    monkeypatch.setattr(Session, "fetch", counting)
    async with client.ApiClient() as api_client:
        api = Api(api_client)
        announcer = Announcer(api)
        duties = (
            Scheduler(database, scope=SCOPE, batch_size=10).run(),
            Reconciler(database, api, scope=SCOPE, announcer=announcer, changed=lambda: None).run(),
            StatusWriter(database, api, scope=SCOPE, announcer=announcer, writes_per_second=20).run(),
            detect(database, scope=SCOPE, by="operator test"),
        )
        tasks = [asyncio.create_task(duty, name="duty") for duty in duties]
        await asyncio.sleep(SECONDS)
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    each_second = {"tick_and_end_expired", "look_at_statuses"}
    assert set(asked) == each_second | {"seconds_to_next_due", "promote_queue_jobs"}
    assert all(asked[query] <= SECONDS + 2 for query in each_second)
    assert all(asked[query] <= 2 for query in set(asked) - each_second)
