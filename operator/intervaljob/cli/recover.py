"""`intervaljob recover`"""

from __future__ import annotations

from typing import Any

import click

from intervaljob.cli.options import load_settings, run, setting_options
from intervaljob.database.connection import Database
from intervaljob.database.migrations import check_version
from intervaljob.errors import SettingsError
from intervaljob.model.scope import Scope
from intervaljob.recovery.detector import recover_at_start
from intervaljob.settings import OperatorSettings


@click.command("recover")
@setting_options(OperatorSettings)
def command(**flags: Any) -> None:
    """Put tasks of dead workers back on the queue, once, as an operator does when it starts."""
    settings = load_settings(OperatorSettings, flags)
    if settings.cluster_id is None:
        raise SettingsError("INTERVALJOB_CLUSTER_ID: say whose tasks (the uid of the cluster's kube-system namespace)")
    scope = Scope(cluster=settings.cluster_id, namespaces=settings.watch_namespaces)

    async def session() -> None:
        async with Database(settings, application="intervaljob recover") as database:
            await check_version(database)
            await recover_at_start(database, scope=scope, by="intervaljob recover")

    run(session())
