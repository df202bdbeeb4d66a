"""A definition as a custom resource gives it, for tests to vary."""

from intervaljob.model.custom_resource import NIL, Definition

WANTED = Definition(
    handler="report",
    payload="{}",
    user_id=NIL,
    workspace_id=NIL,
    queue="default",
    priority=1,
    interval_seconds=60,
    schedule=None,
    time_zone=None,
    jitter_seconds=0,
    concurrency_policy="Allow",
    suspend=False,
    active_deadline_seconds=None,
    backoff_limit=3,
    backoff_initial_seconds=10,
    backoff_max_seconds=360,
    recovery_policy="Rerun",
    recovery_limit=3,
)
