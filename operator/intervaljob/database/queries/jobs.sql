-- name: lock_jobs
SELECT id, cluster_id, namespace, name, generation, resource_version, user_id, workspace_id, payload, handler, queue,
    priority, interval_seconds, schedule, time_zone, jitter_seconds, anchor, concurrency_policy, active_deadline_seconds,
    backoff_limit, backoff_initial_seconds, backoff_max_seconds, recovery_policy, recovery_limit, suspended,
    runnable_since, next_run_at, run_requested_at, cancel_requested_at, problem_reason, problem_message,
    ready_changed_at, deleted_at
FROM {schema}.jobs
WHERE id = ANY(%(jobs)s::uuid[])
ORDER BY id
FOR UPDATE;

-- name: database_time
SELECT now() AS now;

-- name: upsert_jobs
-- Guarded by generation and resource version: an operator that saw an older resource changes nothing. A row that was not
-- there when it was locked for this, and is now, is not touched: what is written was computed from nothing.
INSERT INTO {schema}.jobs AS job (
    id, cluster_id, namespace, name, generation, resource_version, user_id, workspace_id, payload, handler, queue,
    priority, interval_seconds, schedule, time_zone, jitter_seconds, anchor, concurrency_policy, active_deadline_seconds,
    backoff_limit, backoff_initial_seconds, backoff_max_seconds, recovery_policy, recovery_limit, suspended,
    runnable_since, next_run_at, run_requested_at, cancel_requested_at, problem_reason, problem_message,
    ready_changed_at
)
SELECT id, cluster_id, namespace, name, generation, resource_version, user_id, workspace_id, payload, handler, queue,
    priority, interval_seconds, schedule, time_zone, jitter_seconds, anchor, concurrency_policy, active_deadline_seconds,
    backoff_limit, backoff_initial_seconds, backoff_max_seconds, recovery_policy, recovery_limit, suspended,
    runnable_since, next_run_at, run_requested_at, cancel_requested_at, problem_reason, problem_message,
    ready_changed_at
FROM jsonb_to_recordset(%(jobs)s::jsonb) AS new(
    id uuid, cluster_id text, namespace text, name text, generation bigint, resource_version bigint, user_id uuid,
    workspace_id uuid, payload text, handler text, queue text, priority smallint, interval_seconds integer, schedule text,
    time_zone text, jitter_seconds integer, anchor timestamptz, concurrency_policy text, active_deadline_seconds integer,
    backoff_limit integer, backoff_initial_seconds integer, backoff_max_seconds integer, recovery_policy text,
    recovery_limit integer, suspended boolean, runnable_since timestamptz, next_run_at timestamptz,
    run_requested_at text, cancel_requested_at text, problem_reason text, problem_message text,
    ready_changed_at timestamptz
)
ORDER BY id
ON CONFLICT (id) DO UPDATE
SET cluster_id = excluded.cluster_id,
    namespace = excluded.namespace,
    name = excluded.name,
    generation = excluded.generation,
    resource_version = excluded.resource_version,
    user_id = excluded.user_id,
    workspace_id = excluded.workspace_id,
    payload = excluded.payload,
    handler = excluded.handler,
    queue = excluded.queue,
    priority = excluded.priority,
    interval_seconds = excluded.interval_seconds,
    schedule = excluded.schedule,
    time_zone = excluded.time_zone,
    jitter_seconds = excluded.jitter_seconds,
    anchor = excluded.anchor,
    concurrency_policy = excluded.concurrency_policy,
    active_deadline_seconds = excluded.active_deadline_seconds,
    backoff_limit = excluded.backoff_limit,
    backoff_initial_seconds = excluded.backoff_initial_seconds,
    backoff_max_seconds = excluded.backoff_max_seconds,
    recovery_policy = excluded.recovery_policy,
    recovery_limit = excluded.recovery_limit,
    suspended = excluded.suspended,
    runnable_since = excluded.runnable_since,
    next_run_at = excluded.next_run_at,
    run_requested_at = excluded.run_requested_at,
    cancel_requested_at = excluded.cancel_requested_at,
    problem_reason = excluded.problem_reason,
    problem_message = excluded.problem_message,
    ready_changed_at = excluded.ready_changed_at,
    deleted_at = NULL
WHERE job.id = ANY(%(known)s::uuid[])
    AND (job.generation, job.resource_version) <= (excluded.generation, excluded.resource_version)
RETURNING id;

-- name: hold_unkeyed_queue_jobs
-- A job that becomes Forbid waits for what is unfinished of its Allow time, too: occurrences and recovery jobs.
INSERT INTO {schema}.forbid_holds (job_id, queue_job_id)
SELECT job_id, queue_job.id
FROM unnest(%(jobs)s::uuid[]) AS job_id
JOIN {schema}.river_job AS queue_job ON queue_job.args @> jsonb_build_object('job_id', job_id::text)
WHERE queue_job.kind = 'interval_job'
    AND queue_job.state NOT IN ('cancelled', 'completed', 'discarded')
    AND (queue_job.unique_key IS NULL OR queue_job.args ? 'task_id')
ON CONFLICT DO NOTHING;

-- name: known_jobs
SELECT id, generation, run_requested_at, cancel_requested_at
FROM {schema}.jobs
WHERE cluster_id = %(cluster)s AND deleted_at IS NULL AND id = ANY(%(jobs)s::uuid[]);

-- name: all_jobs
-- Keyset pages over every row that stands for a resource of this cluster.
SELECT id, namespace, name
FROM {schema}.jobs
WHERE cluster_id = %(cluster)s
    AND deleted_at IS NULL
    AND (%(namespaces)s::text[] = '{}' OR namespace = ANY(%(namespaces)s::text[]))
    AND id > %(after)s
ORDER BY id
LIMIT %(limit)s;

-- name: retire_jobs
UPDATE {schema}.jobs
SET deleted_at = now(), next_run_at = NULL
WHERE id = ANY(%(jobs)s::uuid[]) AND cluster_id = %(cluster)s AND deleted_at IS NULL
RETURNING id;

-- name: request_cancel
-- What is older than this is to be cancelled, by whoever comes upon it: claims, ends, recoveries and renewals all look.
UPDATE {schema}.jobs SET cancel_before = clock_timestamp() WHERE id = ANY(%(jobs)s::uuid[]);

-- name: cancel_waiting_tasks
-- Tasks before queue jobs, as everybody locks them who ends both.
WITH ended AS (
    UPDATE {schema}.tasks
    SET status = 'cancelled', finished_at = now(), error = %(reason)s
    WHERE job_id = ANY(%(jobs)s::uuid[]) AND status IN ('recovering', 'retrying')
    RETURNING id, job_id, error
)
INSERT INTO {schema}.transitions (job_id, task_id, kind, detail)
SELECT job_id, id, 'cancelled', error FROM ended;

-- name: cancel_waiting_queue_jobs
-- One that is locked is being claimed, and whoever claims it sees that it is cancelled. Returned are the occurrences
-- that never became a task.
UPDATE {schema}.river_job AS queue_job
SET state = 'cancelled', finalized_at = now(),
    metadata = queue_job.metadata || jsonb_build_object('cancel_attempted_at', now()),
    errors = array_append(queue_job.errors, jsonb_build_object(
        'at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'attempt', queue_job.attempt,
        'error', 'JobCancelError: ' || %(reason)s, 'trace', ''
    ))
WHERE id = ANY(ARRAY(
    SELECT waiting.id
    FROM unnest(%(jobs)s::uuid[]) AS job_id
    JOIN {schema}.river_job AS waiting ON waiting.args @> jsonb_build_object('job_id', job_id::text)
    WHERE waiting.kind = 'interval_job' AND waiting.state IN ('available', 'scheduled', 'retryable', 'pending')
    FOR UPDATE OF waiting SKIP LOCKED
))
RETURNING (args ->> 'job_id')::uuid AS job_id,
    {schema}.occurrence_of(metadata, scheduled_at) AS due,
    args ? 'task_id' OR EXISTS (SELECT FROM {schema}.tasks WHERE queue_job_id = queue_job.id) AS has_task;

-- name: cancel_running_queue_jobs
-- The worker of what runs is asked to cancel it, as River's JobCancel does (River §2.8).
WITH asked AS (
    UPDATE {schema}.river_job AS queue_job
    SET metadata = queue_job.metadata || jsonb_build_object('cancel_attempted_at', now())
    FROM unnest(%(jobs)s::uuid[]) AS job_id
    WHERE queue_job.args @> jsonb_build_object('job_id', job_id::text)
        AND queue_job.kind = 'interval_job'
        AND queue_job.state = 'running'
    RETURNING queue_job.id, queue_job.queue
)
SELECT count(pg_notify(
    '{schema}.river_control', json_build_object('action', 'cancel', 'job_id', id, 'queue', queue)::text
)) AS asked
FROM asked;

-- name: forget_forbid_holds
DELETE FROM {schema}.forbid_holds AS hold
WHERE NOT EXISTS (
    SELECT FROM {schema}.river_job AS held
    WHERE held.id = hold.queue_job_id AND held.state NOT IN ('cancelled', 'completed', 'discarded')
);
