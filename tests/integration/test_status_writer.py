"""The status writer when the database goes away in the middle of its work."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from kubernetes.aio import client
from support import CLUSTER, SCOPE

from intervaljob.controller.api import Api
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
