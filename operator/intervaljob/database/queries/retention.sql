-- name: delete_old_queue_jobs
-- Queue jobs of this state that ended longer ago than they are kept, and with each the task that it ended, unless that is
-- one of the newest of an IntervalJob, or a queue job that is not finished names it. The queue job of a task that has not
-- ended stays: whether it is there, and what is written on it, decides what becomes of the task.
-- `limit` rows are read by River's index for this, from `after` on, so that what stays is not read again and again.
WITH old AS MATERIALIZED (
    SELECT id, kind, args, finalized_at
    FROM {schema}.river_job
    WHERE state = %(state)s::text::{schema}.river_job_state
        AND finalized_at >= %(after)s
        AND finalized_at < now() - make_interval(secs => %(seconds)s)
    ORDER BY finalized_at
    LIMIT %(limit)s
), own AS MATERIALIZED (
    SELECT old.id, task.id AS task_id, task.job_id, job.deleted_at IS NULL AND job.id IS NOT NULL AS lives
    FROM old
    LEFT JOIN LATERAL (SELECT * FROM {schema}.tasks WHERE queue_job_id = old.id LIMIT 1) AS task ON true
    LEFT JOIN LATERAL (
        SELECT *
        FROM {schema}.jobs
        WHERE id = coalesce(task.job_id, CASE
            WHEN old.args ->> 'job_id' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                THEN (old.args ->> 'job_id')::uuid
        END)
        LIMIT 1
    ) AS job ON true
    WHERE old.kind = 'interval_job'
        AND (task.id IS NULL OR task.status IN ('succeeded', 'failed', 'cancelled'))
        AND (job.cluster_id IS NULL OR job.cluster_id = %(cluster)s)
        AND (job.cluster_id IS NULL OR %(namespaces)s::text[] = '{}' OR job.namespace = ANY(%(namespaces)s::text[]))
), newest AS (
    SELECT task.id
    FROM (SELECT DISTINCT job_id FROM own WHERE lives AND task_id IS NOT NULL) AS job
    CROSS JOIN LATERAL (
        SELECT id FROM {schema}.tasks WHERE job_id = job.job_id ORDER BY created_at DESC LIMIT %(newest)s
    ) AS task
), named AS (
    SELECT args ->> 'task_id' AS task_id
    FROM {schema}.river_job
    WHERE args ? 'task_id' AND state NOT IN ('cancelled', 'completed', 'discarded')
), locked AS MATERIALIZED (
    SELECT id
    FROM {schema}.river_job
    WHERE id = ANY(ARRAY(SELECT id FROM own)) AND state::text = %(state)s
    FOR UPDATE SKIP LOCKED
), tasks AS (
    DELETE FROM {schema}.tasks
    WHERE id = ANY(ARRAY(
        SELECT own.task_id
        FROM own
        JOIN locked USING (id)
        WHERE NOT EXISTS (SELECT FROM newest WHERE newest.id = own.task_id)
            AND NOT EXISTS (SELECT FROM named WHERE named.task_id = own.task_id::text)
    ))
    RETURNING id
), queue_jobs AS (
    DELETE FROM {schema}.river_job WHERE id = ANY(ARRAY(SELECT id FROM locked)) RETURNING id
)
SELECT (SELECT count(*) FROM old) AS read, (SELECT max(finalized_at) FROM old) AS last,
    (SELECT count(*) FROM tasks) AS tasks, (SELECT count(*) FROM queue_jobs) AS river_job;

-- name: delete_outlived_tasks
-- Tasks that outlived their queue jobs, of a page of jobs: they were among the newest then and are no longer, or their
-- IntervalJob was deleted, or somebody deleted the queue job. The workers that a status shows come back, of whatever
-- cluster, since workers belong to none.
WITH page AS MATERIALIZED (
    SELECT id, deleted_at,
        cluster_id IS NULL OR cluster_id = %(cluster)s
            AND (%(namespaces)s::text[] = '{}' OR namespace = ANY(%(namespaces)s::text[])) AS own
    FROM {schema}.jobs
    WHERE id > %(after)s
    ORDER BY id
    LIMIT %(jobs)s
), newest AS MATERIALIZED (
    SELECT task.id, task.worker_id
    FROM page
    CROSS JOIN LATERAL (
        SELECT id, worker_id FROM {schema}.tasks WHERE job_id = page.id ORDER BY created_at DESC LIMIT %(newest)s
    ) AS task
    WHERE page.deleted_at IS NULL
), named AS MATERIALIZED (
    SELECT args ->> 'task_id' AS task_id
    FROM {schema}.river_job
    WHERE args ? 'task_id' AND state NOT IN ('cancelled', 'completed', 'discarded')
), outlived AS (
    SELECT task.id
    FROM page
    CROSS JOIN LATERAL (
        SELECT id
        FROM {schema}.tasks
        WHERE job_id = page.id
            AND created_at < now() - make_interval(secs => %(seconds)s)
            AND coalesce(finished_at, created_at) < now() - make_interval(secs => %(seconds)s)
            AND status IN ('succeeded', 'failed', 'cancelled')
            AND NOT EXISTS (SELECT FROM newest WHERE newest.id = tasks.id)
            AND NOT EXISTS (SELECT FROM named WHERE named.task_id = tasks.id::text)
            AND (SELECT queue_job.id FROM {schema}.river_job AS queue_job WHERE queue_job.id = queue_job_id) IS NULL
        ORDER BY created_at
        LIMIT %(limit)s
    ) AS task
    WHERE page.own
    LIMIT %(limit)s
), deleted AS (
    DELETE FROM {schema}.tasks
    WHERE id = ANY(ARRAY(
        SELECT id FROM {schema}.tasks WHERE id = ANY(ARRAY(SELECT id FROM outlived)) FOR UPDATE SKIP LOCKED
    ))
    RETURNING id
)
SELECT (SELECT count(*) FROM page) AS read, (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last,
    (SELECT count(*) FROM deleted) AS tasks,
    ARRAY(SELECT DISTINCT worker_id FROM newest WHERE worker_id IS NOT NULL) AS shown;

-- name: delete_retired_jobs
-- Once no task and no queue job is left of them, with all that is kept for a job alone.
WITH retired AS (
    SELECT id
    FROM {schema}.jobs AS job
    WHERE deleted_at < now() - make_interval(secs => %(seconds)s)
        AND (cluster_id IS NULL OR cluster_id = %(cluster)s)
        AND (cluster_id IS NULL OR %(namespaces)s::text[] = '{}' OR namespace = ANY(%(namespaces)s::text[]))
        AND (SELECT id FROM {schema}.tasks WHERE job_id = job.id LIMIT 1) IS NULL
        AND (SELECT count(*) FROM {schema}.river_job WHERE args @> jsonb_build_object('job_id', job.id::text)) = 0
    ORDER BY deleted_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), statuses AS (
    DELETE FROM {schema}.job_status WHERE job_id = ANY(ARRAY(SELECT id FROM retired))
), ledger AS (
    DELETE FROM {schema}.skipped_occurrences WHERE job_id = ANY(ARRAY(SELECT id FROM retired))
), holds AS (
    DELETE FROM {schema}.forbid_holds WHERE job_id = ANY(ARRAY(SELECT id FROM retired))
), deleted AS (
    DELETE FROM {schema}.jobs WHERE id = ANY(ARRAY(SELECT id FROM retired)) RETURNING id
)
SELECT count(*) AS jobs FROM deleted;

-- name: delete_ended_workers
-- Those that no status shows and that hold no running task, sought through River's index on running queue jobs.
WITH holding AS MATERIALIZED (
    SELECT task.worker_id
    FROM {schema}.river_job AS queue_job
    JOIN {schema}.tasks AS task ON task.queue_job_id = queue_job.id
    WHERE queue_job.state = 'running' AND queue_job.kind = 'interval_job' AND task.status = 'running'
), deleted AS (
    DELETE FROM {schema}.workers
    WHERE id = ANY(ARRAY(
        SELECT id
        FROM {schema}.workers AS worker
        WHERE ended_at < now() - make_interval(secs => %(seconds)s)
            AND NOT id = ANY(%(shown)s::uuid[])
            AND NOT EXISTS (SELECT FROM holding WHERE worker_id = worker.id)
        ORDER BY ended_at
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING id
)
SELECT count(*) AS workers FROM deleted;

-- name: delete_lost_transitions
-- Their job is gone, so nobody folds them; the oldest are looked at.
WITH deleted AS (
    DELETE FROM {schema}.transitions
    WHERE id = ANY(ARRAY(
        SELECT id
        FROM (SELECT id, job_id, at FROM {schema}.transitions ORDER BY id LIMIT %(limit)s) AS oldest
        WHERE at < now() - make_interval(secs => %(seconds)s)
            AND (SELECT job.id FROM {schema}.jobs AS job WHERE job.id = oldest.job_id) IS NULL
    ))
    RETURNING id
)
SELECT count(*) AS transitions FROM deleted;
