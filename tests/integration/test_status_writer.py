"""The status writer when the database goes away in the middle of its work, or somebody else writes."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from kubernetes.aio import client
from support import CLUSTER, SCOPE, AddJob, Execute

from intervaljob.controller.api import Api, Conflict
from intervaljob.controller.events import Announcer
from intervaljob.controller.status_writer import StatusWriter
from intervaljob.database.connection import Database
from intervaljob.database.migrations import migrate_up
from intervaljob.embedded.postgres import Postgres
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.custom_resource import IntervalJob
from intervaljob.settings import DatabaseSettings, load

pytestmark = pytest.mark.postgres_only(18)


class ApiThatOutlivesTheDatabase(Api):
    """The database crashes while this API server answers; every IntervalJob is gone from it."""

    server: Postgres
    asked = 0

    async def get(self, *, namespace: str, name: str) -> IntervalJob | None:  # noqa: ARG002 - Api's
        self.asked += 1
        if self.asked == 1:
            self.server.stop("immediate")
        return None


class ApiWithConflicts(Api):
    """Everybody's IntervalJob was changed just before the first write of its status."""

    def __init__(self, resources: list[IntervalJob]) -> None:
        self.resources = {resource.name: resource for resource in resources}
        self.written: list[str] = []
        self.asked = 0

    async def get(self, *, namespace: str, name: str) -> IntervalJob | None:  # noqa: ARG002 - Api's
        return self.resources[name]

    async def write_status(self, *, name: str, **_: Any) -> IntervalJob:
        self.asked += 1
        if self.asked <= len(self.resources):
            raise Conflict
        self.written.append(name)
        return self.resources[name]


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    with Postgres(durable=False) as server:
        yield server


async def test_a_database_that_goes_away_in_the_middle_is_only_unavailable(own_server: Postgres) -> None:
    own_server.create_database("statuses")
    settings = load(DatabaseSettings, database_url=own_server.url("statuses"))
    async with Database(settings, application="tests") as database, client.ApiClient() as api_client:
        await migrate_up(database)
        async with database.session() as session:
            for _ in range(5):
                await session.connection.execute(
                    "INSERT INTO intervaljob.jobs (id, user_id, workspace_id, cluster_id, namespace)"
                    " VALUES (%(id)s, %(id)s, %(id)s, %(cluster)s, 'default')",
                    {"id": uuid4(), "cluster": CLUSTER},
                )
            await session.connection.execute(
                "INSERT INTO intervaljob.job_status (job_id) SELECT id FROM intervaljob.jobs"
            )
        api = ApiThatOutlivesTheDatabase(api_client)
        api.server = own_server
        writer = StatusWriter(database, api, scope=SCOPE, announcer=Announcer(api), writes_per_second=20)
        # What `run` waits and tries again for; anything else would end the operator.
        with pytest.raises(DatabaseUnavailable):
            await writer._write_some()
        assert api.asked > 0


async def test_what_was_overtaken_is_written_at_once(database: Database, execute: Execute, add_job: AddJob) -> None:
    """Who has just edited something looks at it."""
    jobs = {name: await add_job(name=name) for name in ("one", "two", "three")}
    await database.fetch("touch_statuses", jobs=list(jobs.values()))
    api = ApiWithConflicts([_resource(name, uid) for name, uid in jobs.items()])
    writer = StatusWriter(database, api, scope=SCOPE, announcer=Announcer(api), writes_per_second=20)
    assert await writer._write_some()
    assert api.written == []
    assert await writer._write_some()
    assert sorted(api.written) == sorted(jobs)
    assert not await writer._write_some()
    assert await execute("SELECT 1 FROM {schema}.job_status WHERE revision > written_revision") == []


def _resource(name: str, uid: UUID) -> IntervalJob:
    return IntervalJob(
        uid=uid,
        namespace="default",
        name=name,
        generation=1,
        created_at=datetime.now(UTC),
        resource_version="1",
        run_requested_at=None,
        cancel_requested_at=None,
        deleting=False,
        spec={},
        status={},
    )
