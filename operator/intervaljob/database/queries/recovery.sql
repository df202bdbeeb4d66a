-- name: lock_orphans
-- Running tasks whose holder is gone, found through River's index on running queue jobs: cheap enough for each second.
SELECT task.id
FROM {schema}.river_job AS queue_job
JOIN {schema}.tasks AS task ON task.queue_job_id = queue_job.id
LEFT JOIN {schema}.jobs AS job ON job.id = task.job_id
LEFT JOIN {schema}.workers AS worker ON worker.id = task.worker_id
WHERE queue_job.state = 'running'
    AND queue_job.kind = 'interval_job'
    AND task.status = 'running'
    AND (worker.id IS NULL OR worker.ended_at IS NOT NULL)
    AND (job.cluster_id IS NULL OR job.cluster_id = %(cluster)s)
    AND (job.cluster_id IS NULL OR %(namespaces)s::text[] = '{}' OR job.namespace = ANY(%(namespaces)s::text[]))
ORDER BY task.id
LIMIT %(limit)s
FOR UPDATE OF task SKIP LOCKED;

-- name: lock_all_orphans
-- The same over every running task, also those whose queue job was deleted by hand or that never had one.
SELECT task.id
FROM {schema}.tasks AS task
LEFT JOIN {schema}.jobs AS job ON job.id = task.job_id
LEFT JOIN {schema}.workers AS worker ON worker.id = task.worker_id
WHERE task.status = 'running'
    AND (worker.id IS NULL OR worker.ended_at IS NOT NULL)
    AND (job.cluster_id IS NULL OR job.cluster_id = %(cluster)s)
    AND (job.cluster_id IS NULL OR %(namespaces)s::text[] = '{}' OR job.namespace = ANY(%(namespaces)s::text[]))
ORDER BY task.id
LIMIT %(limit)s
FOR UPDATE OF task SKIP LOCKED;

-- name: read_orphans
-- Which of the locked tasks are orphans still. A task that moved on before its lock is joined with its old worker above.
SELECT task.id AS task_id, task.job_id, task.queue_job_id, task.attempt, task.recoveries, task.payload,
    coalesce(worker.end_reason, 'unknown_worker') AS evidence, coalesce(worker.name, '') AS worker,
    job.id IS NULL OR job.deleted_at IS NOT NULL AS job_deleted,
    job.user_id, job.workspace_id, job.queue, job.priority, job.backoff_limit, job.concurrency_policy
FROM {schema}.tasks AS task
LEFT JOIN {schema}.jobs AS job ON job.id = task.job_id
LEFT JOIN {schema}.workers AS worker ON worker.id = task.worker_id
WHERE task.id = ANY(%(tasks)s::uuid[])
    AND task.status = 'running'
    AND (worker.id IS NULL OR worker.ended_at IS NOT NULL);

-- name: lock_own_tasks
-- What a living worker gives back itself: attempts whose process has died, or that it had no time left for.
SELECT task.id AS task_id, task.job_id, task.queue_job_id, task.attempt, task.recoveries, task.payload,
    lost.evidence, %(name)s AS worker,
    job.id IS NULL OR job.deleted_at IS NOT NULL AS job_deleted,
    job.user_id, job.workspace_id, job.queue, job.priority, job.backoff_limit, job.concurrency_policy
FROM jsonb_to_recordset(%(tasks)s::jsonb) AS lost(task_id uuid, attempt integer, evidence text)
JOIN {schema}.tasks AS task ON task.id = lost.task_id AND task.attempt = lost.attempt
LEFT JOIN {schema}.jobs AS job ON job.id = task.job_id
WHERE task.status = 'running' AND task.worker_id = %(worker)s
ORDER BY task.id
FOR UPDATE OF task;

-- name: end_orphaned_queue_jobs
UPDATE {schema}.river_job AS queue_job
SET state = 'cancelled', finalized_at = now(), errors = array_append(queue_job.errors, orphan.entry)
FROM jsonb_to_recordset(%(orphans)s::jsonb) AS orphan(queue_job_id bigint, entry jsonb)
WHERE queue_job.id = orphan.queue_job_id AND queue_job.state NOT IN ('cancelled', 'completed', 'discarded');

-- name: end_lost_queue_jobs
-- Running queue jobs of dead workers that no running task belongs to: the task was deleted, or has gone on without it.
UPDATE {schema}.river_job AS queue_job
SET state = 'cancelled', finalized_at = now(), errors = array_append(queue_job.errors, jsonb_build_object(
    'at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'attempt', queue_job.attempt,
    'error', 'the worker is gone, and no running task belongs to this queue job', 'trace', ''
))
FROM {schema}.workers AS worker
WHERE queue_job.state = 'running'
    AND queue_job.kind = 'interval_job'
    AND worker.id::text = queue_job.attempted_by[array_length(queue_job.attempted_by, 1)]
    AND worker.ended_at IS NOT NULL
    AND NOT EXISTS (
        SELECT FROM {schema}.tasks WHERE queue_job_id = queue_job.id AND status = 'running'
    );

-- name: insert_recovery_jobs
-- One recovery job for a task, whoever asks and however often: its unique key is the task's.
INSERT INTO {schema}.river_job (
    kind, args, queue, priority, max_attempts, metadata, unique_key, unique_states
)
SELECT 'interval_job', args, queue, priority, max_attempts, jsonb_build_object('intervaljob:evidence', evidence),
    decode(unique_key, 'hex'), %(active_states)s::bit(8)
FROM jsonb_to_recordset(%(recoveries)s::jsonb) AS recovery(
    args jsonb, queue text, priority smallint, max_attempts smallint, evidence text, unique_key text
)
ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND unique_states IS NOT NULL
    AND {schema}.river_job_state_in_bitmask(unique_states, state)
    DO NOTHING
RETURNING id AS queue_job_id, (args ->> 'task_id')::uuid AS task_id;

-- name: mark_recovering
WITH marked AS (
    UPDATE {schema}.tasks AS task
    SET status = 'recovering', recoveries = task.recoveries + recovery.counted::integer,
        queue_job_id = recovery.queue_job_id
    FROM jsonb_to_recordset(%(recoveries)s::jsonb) AS recovery(
        task_id uuid, queue_job_id bigint, evidence text, counted boolean, forbid boolean
    )
    WHERE task.id = recovery.task_id AND task.status = 'running'
    RETURNING task.id, task.job_id, task.queue_job_id, recovery.evidence, recovery.forbid
), held AS (
    INSERT INTO {schema}.forbid_holds (job_id, queue_job_id)
    SELECT job_id, queue_job_id FROM marked WHERE forbid
), noted AS (
    INSERT INTO {schema}.transitions (job_id, task_id, kind, detail)
    SELECT job_id, id, 'recovered', evidence FROM marked
)
SELECT id FROM marked;

-- name: end_orphans
WITH ended AS (
    UPDATE {schema}.tasks AS task
    SET status = orphan.status, error = orphan.error, finished_at = now()
    FROM jsonb_to_recordset(%(orphans)s::jsonb) AS orphan(task_id uuid, status text, error text)
    WHERE task.id = orphan.task_id AND task.status = 'running'
    RETURNING task.id, task.job_id, task.status, task.error
)
INSERT INTO {schema}.transitions (job_id, task_id, kind, detail)
SELECT job_id, id, status, error FROM ended;

-- name: notify_queues
SELECT pg_notify('{schema}.river_insert', json_build_object('queue', queue)::text)
FROM (SELECT DISTINCT unnest(%(queues)s::text[]) AS queue) AS queues;
