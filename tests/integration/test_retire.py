"""A row is retired only after the API server said that its resource is gone."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from kubernetes.aio import client
from support import SCOPE, AddJob, Execute

from intervaljob.controller.api import Api
from intervaljob.controller.events import Announcer
from intervaljob.controller.reconciler import Key, Reconciler
from intervaljob.database.connection import Database
from intervaljob.model.custom_resource import IntervalJob


class OneAnswer(Api):
    """An API server that knows one IntervalJob of the name that is asked for, or none."""

    uid: UUID | None = None

    async def get(self, *, namespace: str, name: str) -> IntervalJob | None:
        if self.uid is None:
            return None
        return IntervalJob(
            uid=self.uid,
            namespace=namespace,
            name=name,
            generation=1,
            created_at=datetime.now(UTC),
            resource_version="1",
            run_requested_at=None,
            cancel_requested_at=None,
            deleting=False,
            spec={"interval": "1h", "handler": "echo"},
            status={},
        )


@pytest.mark.parametrize(("answer", "retired"), [("itself", False), ("another", True), ("none", True)])
async def test_a_missed_resource_is_asked_for_before_its_row_is_retired(
    database: Database, execute: Execute, add_job: AddJob, answer: str, retired: bool
) -> None:
    job = await add_job()
    async with client.ApiClient() as api_client:
        api = OneAnswer(api_client)
        api.uid = {"itself": job, "another": uuid4(), "none": None}[answer]
        reconciler = Reconciler(database, api, scope=SCOPE, announcer=Announcer(api), changed=lambda: None)
        reconciler.miss(Key(uid=job, namespace="default", name="job"))
        await reconciler._step()
    (row,) = await execute("SELECT deleted_at IS NOT NULL AS retired FROM {schema}.jobs")
    assert row["retired"] is retired
