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

-- name: lock_own_tasks
-- What a living worker gives back itself: attempts whose process has died, or that it had no time left for.
SELECT task.id, lost.evidence, lost.detail
FROM jsonb_to_recordset(%(lost)s::jsonb) AS lost(task_id uuid, attempt integer, evidence text, detail text)
JOIN {schema}.tasks AS task ON task.id = lost.task_id AND task.attempt = lost.attempt
WHERE task.status = 'running' AND task.worker_id = %(worker)s
ORDER BY task.id
FOR UPDATE OF task;

-- name: lock_queue_jobs_of_tasks
-- Before anybody reads whether they are to be cancelled: a wish that comes later finds them ended.
SELECT id
FROM {schema}.river_job
WHERE id IN (SELECT queue_job_id FROM {schema}.tasks WHERE id = ANY(%(tasks)s::uuid[]))
ORDER BY id
FOR UPDATE;

-- name: read_orphans
-- Which of the locked tasks are orphans still: one that moved on before its lock was joined with its old worker above.
-- Where a living worker gave the task back, the evidence is the worker's own.
SELECT task.id AS task_id, task.job_id, task.queue_job_id, task.attempt, task.recoveries, task.payload,
    coalesce(lost.evidence, worker.end_reason, 'unknown_worker') AS evidence, lost.detail,
    coalesce(worker.name, '') AS worker,
    CASE
        WHEN job.id IS NULL OR job.deleted_at IS NOT NULL THEN 'the IntervalJob was deleted'
        WHEN task.created_at < job.cancel_before OR queue_job.metadata ? 'cancel_attempted_at'
            THEN 'it was cancelled'
    END AS cancelled,
    job.user_id, job.workspace_id, job.queue, job.priority, job.backoff_limit,
    job.recovery_policy, job.recovery_limit
FROM jsonb_to_recordset(%(lost)s::jsonb) AS lost(id uuid, evidence text, detail text)
JOIN {schema}.tasks AS task ON task.id = lost.id
LEFT JOIN {schema}.river_job AS queue_job ON queue_job.id = task.queue_job_id
LEFT JOIN {schema}.jobs AS job ON job.id = task.job_id
LEFT JOIN {schema}.workers AS worker ON worker.id = task.worker_id
WHERE task.status = 'running'
    AND (lost.evidence IS NOT NULL OR worker.id IS NULL OR worker.ended_at IS NOT NULL);

-- name: end_orphaned_queue_jobs
UPDATE {schema}.river_job AS queue_job
SET state = 'cancelled', finalized_at = now(), errors = array_append(queue_job.errors, orphan.entry)
FROM jsonb_to_recordset(%(orphans)s::jsonb) AS orphan(queue_job_id bigint, entry jsonb)
WHERE queue_job.id = orphan.queue_job_id AND queue_job.state NOT IN ('cancelled', 'completed', 'discarded');

-- name: end_lost_queue_jobs
-- Running queue jobs of our workers that no running task belongs to: the task was deleted, or has gone on without it.
-- A claim commits both at once, so that there is no moment at which a sound queue job looks like this.
UPDATE {schema}.river_job AS queue_job
SET state = 'cancelled', finalized_at = now(), errors = array_append(queue_job.errors, jsonb_build_object(
    'at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'attempt', queue_job.attempt,
    'error', 'no running task belongs to this queue job: it was deleted, or has gone on without it', 'trace', ''
))
WHERE queue_job.state = 'running'
    AND queue_job.kind = 'interval_job'
    AND queue_job.attempted_by[array_length(queue_job.attempted_by, 1)] ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
    AND NOT EXISTS (
        SELECT FROM {schema}.tasks WHERE queue_job_id = queue_job.id AND status = 'running'
    );

-- name: insert_recovery_jobs
-- One recovery job for a task, whoever asks and however often: its unique key is the task's. One that somebody else has
-- inserted is adopted.
INSERT INTO {schema}.river_job AS known (
    kind, args, queue, priority, max_attempts, metadata, unique_key, unique_states
)
SELECT 'interval_job', args, queue, priority, max_attempts, jsonb_build_object('intervaljob:evidence', evidence),
    decode(unique_key, 'hex'), %(active_states)s::bit(8)
FROM jsonb_to_recordset(%(recoveries)s::jsonb) AS recovery(
    args jsonb, queue text, priority smallint, max_attempts smallint, evidence text, unique_key text
)
ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND unique_states IS NOT NULL
    AND {schema}.river_job_state_in_bitmask(unique_states, state)
    DO UPDATE SET metadata = known.metadata || excluded.metadata
RETURNING id AS queue_job_id, (args ->> 'task_id')::uuid AS task_id;

-- name: mark_recovering
-- The hold counts once the job is Forbid, which it may become at any time.
WITH marked AS (
    UPDATE {schema}.tasks AS task
    SET status = 'recovering', recoveries = task.recoveries + recovery.counted::integer,
        queue_job_id = recovery.queue_job_id,
        earlier_attempts = {schema}.with_attempt(task.earlier_attempts, jsonb_build_object(
            'attempt', task.attempt, 'worker', recovery.worker, 'startedAt', task.started_at, 'endedAt', now(),
            'outcome', 'lost', 'evidence', recovery.evidence, 'error', recovery.detail, 'recovered', true
        ))
    FROM jsonb_to_recordset(%(recoveries)s::jsonb) AS recovery(
        task_id uuid, queue_job_id bigint, worker text, evidence text, detail text, counted boolean
    )
    WHERE task.id = recovery.task_id AND task.status = 'running'
    RETURNING task.id, task.job_id, task.queue_job_id, recovery.evidence
), held AS (
    INSERT INTO {schema}.forbid_holds (job_id, queue_job_id)
    SELECT job_id, queue_job_id FROM marked
    ON CONFLICT DO NOTHING
), noted AS (
    INSERT INTO {schema}.transitions (job_id, task_id, kind, detail)
    SELECT job_id, id, 'recovered', evidence FROM marked
)
SELECT id FROM marked;

-- name: end_orphans
WITH ended AS (
    UPDATE {schema}.tasks AS task
    SET status = orphan.status, error = orphan.error, finished_at = now(),
        earlier_attempts = {schema}.with_attempt(task.earlier_attempts, jsonb_build_object(
            'attempt', task.attempt, 'worker', orphan.worker, 'startedAt', task.started_at, 'endedAt', now(),
            'outcome', 'lost', 'evidence', orphan.evidence, 'error', orphan.detail, 'recovered', false
        ))
    FROM jsonb_to_recordset(%(orphans)s::jsonb) AS orphan(
        task_id uuid, status text, error text, worker text, evidence text, detail text
    )
    WHERE task.id = orphan.task_id AND task.status = 'running'
    RETURNING task.id, task.job_id, task.status, task.error
)
INSERT INTO {schema}.transitions (job_id, task_id, kind, detail)
SELECT job_id, id, status, error FROM ended;

-- name: lock_stranded_tasks
-- Tasks that wait for a queue job which somebody deleted or ended: nothing of ours leaves such a task.
SELECT task.id
FROM {schema}.tasks AS task
JOIN {schema}.jobs AS job ON job.id = task.job_id
LEFT JOIN {schema}.river_job AS queue_job ON queue_job.id = task.queue_job_id
WHERE task.status IN ('recovering', 'retrying')
    AND (queue_job.id IS NULL OR queue_job.state IN ('cancelled', 'completed', 'discarded'))
    AND (job.cluster_id IS NULL OR job.cluster_id = %(cluster)s)
    AND (job.cluster_id IS NULL OR %(namespaces)s::text[] = '{}' OR job.namespace = ANY(%(namespaces)s::text[]))
ORDER BY task.id
LIMIT %(limit)s
FOR UPDATE OF task SKIP LOCKED;

-- name: read_stranded_tasks
SELECT task.id AS task_id, task.job_id, task.payload, task.attempt, queue_job.state,
    job.user_id, job.workspace_id, job.queue, job.priority, job.backoff_limit
FROM {schema}.tasks AS task
JOIN {schema}.jobs AS job ON job.id = task.job_id
LEFT JOIN {schema}.river_job AS queue_job ON queue_job.id = task.queue_job_id
WHERE task.id = ANY(%(tasks)s::uuid[])
    AND task.status IN ('recovering', 'retrying')
    AND (queue_job.id IS NULL OR queue_job.state IN ('cancelled', 'completed', 'discarded'));

-- name: queue_stranded_tasks
WITH queued AS (
    UPDATE {schema}.tasks AS task
    SET status = 'recovering', queue_job_id = recovery.queue_job_id
    FROM jsonb_to_recordset(%(recoveries)s::jsonb) AS recovery(task_id uuid, queue_job_id bigint)
    WHERE task.id = recovery.task_id AND task.status IN ('recovering', 'retrying')
    RETURNING task.job_id, task.queue_job_id
)
INSERT INTO {schema}.forbid_holds (job_id, queue_job_id)
SELECT job_id, queue_job_id FROM queued
ON CONFLICT DO NOTHING;

-- name: cancel_stranded_tasks
WITH ended AS (
    UPDATE {schema}.tasks
    SET status = 'cancelled', error = %(error)s, finished_at = now()
    WHERE id = ANY(%(tasks)s::uuid[]) AND status IN ('recovering', 'retrying')
    RETURNING id, job_id, error
)
INSERT INTO {schema}.transitions (job_id, task_id, kind, detail)
SELECT job_id, id, 'cancelled', error FROM ended;

-- name: notify_queues
SELECT pg_notify('{schema}.river_insert', json_build_object('queue', queue)::text)
FROM (SELECT DISTINCT unnest(%(queues)s::text[]) AS queue) AS queues;
