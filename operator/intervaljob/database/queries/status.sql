-- name: look_at_statuses
SELECT EXISTS (SELECT FROM {schema}.transitions) AS to_fold,
    (SELECT count(*) FROM {schema}.job_status WHERE revision > written_revision) AS waiting;

-- name: fold_transitions
-- Takes what happened and adds it to the jobs' counts in one transaction, so that nothing counts twice or never.
-- Returned is what is news of that, with the result that the job had before; most of it is not.
WITH taken AS (
    DELETE FROM {schema}.transitions
    WHERE id = ANY(ARRAY(
        SELECT transition.id
        FROM {schema}.transitions AS transition
        JOIN {schema}.jobs AS job ON job.id = transition.job_id
        WHERE job.cluster_id IS NULL
            OR job.cluster_id = %(cluster)s
            AND (%(namespaces)s::text[] = '{}' OR job.namespace = ANY(%(namespaces)s::text[]))
        ORDER BY transition.id
        LIMIT %(limit)s
        FOR UPDATE OF transition SKIP LOCKED
    ))
    RETURNING id, job_id, task_id, kind, count, detail, at
), folded AS (
    INSERT INTO {schema}.job_status AS status (
        job_id, succeeded, failed, cancelled, recovered, skipped, last_success_at, last_failure_at, last_cancel_at,
        watched_until
    )
    SELECT job_id,
        coalesce(sum(count) FILTER (WHERE kind = 'succeeded'), 0),
        coalesce(sum(count) FILTER (WHERE kind = 'failed'), 0),
        coalesce(sum(count) FILTER (WHERE kind = 'cancelled'), 0),
        coalesce(sum(count) FILTER (WHERE kind = 'recovered'), 0),
        coalesce(sum(count) FILTER (WHERE kind = 'skipped'), 0),
        max(at) FILTER (WHERE kind = 'succeeded'),
        max(at) FILTER (WHERE kind = 'failed'),
        max(at) FILTER (WHERE kind = 'cancelled'),
        coalesce(
            max(now() + make_interval(secs => %(watched_seconds)s)) FILTER (WHERE kind IN ('failed', 'recovered')),
            'epoch'
        )
    FROM taken
    GROUP BY job_id
    ORDER BY job_id
    ON CONFLICT (job_id) DO UPDATE
    SET succeeded = status.succeeded + excluded.succeeded,
        failed = status.failed + excluded.failed,
        cancelled = status.cancelled + excluded.cancelled,
        recovered = status.recovered + excluded.recovered,
        skipped = status.skipped + excluded.skipped,
        last_success_at = greatest(excluded.last_success_at, status.last_success_at),
        last_failure_at = greatest(excluded.last_failure_at, status.last_failure_at),
        last_cancel_at = greatest(excluded.last_cancel_at, status.last_cancel_at),
        watched_until = greatest(excluded.watched_until, status.watched_until),
        revision = status.revision + 1
)
SELECT taken.job_id, taken.task_id, taken.kind, taken.count, taken.detail, status.last_result,
    job.namespace, job.name, job.deleted_at IS NOT NULL OR job.cluster_id IS NULL AS has_no_resource
FROM taken
JOIN {schema}.jobs AS job ON job.id = taken.job_id
LEFT JOIN {schema}.job_status AS status ON status.job_id = taken.job_id
WHERE taken.kind IN ('failed', 'cancelled', 'recovered', 'skipped')
    OR taken.kind = 'succeeded' AND status.last_result IS DISTINCT FROM 'succeeded'
ORDER BY taken.id;

-- name: touch_statuses
INSERT INTO {schema}.job_status AS status (job_id)
SELECT job_id FROM unnest(%(jobs)s::uuid[]) AS job_id
ORDER BY job_id
ON CONFLICT (job_id) DO UPDATE SET revision = status.revision + 1, write_after = now();

-- name: watch_statuses
-- Somebody looks at these IntervalJobs: their statuses are written before others.
UPDATE {schema}.job_status
SET watched_until = now() + make_interval(secs => %(watched_seconds)s)
WHERE job_id = ANY(%(jobs)s::uuid[]);

-- name: claim_unwritten_statuses
-- Three of four are among those that are watched, as far as there are so many; the rest are those that have waited
-- longest, so that no crowd of watched ones keeps the others waiting for ever.
WITH watched AS (
    SELECT status.job_id
    FROM {schema}.job_status AS status
    JOIN {schema}.jobs AS job ON job.id = status.job_id
    WHERE status.revision > status.written_revision
        AND status.watched_until > now()
        AND status.write_after <= now()
        AND job.cluster_id = %(cluster)s
        AND job.deleted_at IS NULL
        AND (%(namespaces)s::text[] = '{}' OR job.namespace = ANY(%(namespaces)s::text[]))
    ORDER BY status.write_after
    LIMIT greatest(1, %(limit)s::integer * 3 / 4)
    FOR UPDATE OF status SKIP LOCKED
), others AS (
    SELECT status.job_id
    FROM {schema}.job_status AS status
    JOIN {schema}.jobs AS job ON job.id = status.job_id
    WHERE status.revision > status.written_revision
        AND status.watched_until <= now()
        AND status.write_after <= now()
        AND job.cluster_id = %(cluster)s
        AND job.deleted_at IS NULL
        AND (%(namespaces)s::text[] = '{}' OR job.namespace = ANY(%(namespaces)s::text[]))
    ORDER BY status.write_after
    LIMIT %(limit)s
    FOR UPDATE OF status SKIP LOCKED
)
UPDATE {schema}.job_status AS status
SET write_after = now() + make_interval(secs => %(retry_seconds)s)
FROM {schema}.jobs AS job
WHERE job.id = status.job_id
    AND status.job_id = ANY(ARRAY(
        SELECT job_id
        FROM (SELECT job_id, 1 AS turn FROM watched UNION ALL SELECT job_id, 2 FROM others) AS found
        ORDER BY turn
        LIMIT %(limit)s
    ))
RETURNING status.job_id, status.revision, job.namespace, job.name;

-- name: read_statuses
SELECT job.id AS job_id, job.namespace, job.name, job.generation, job.interval_seconds, job.schedule,
    job.suspended, job.next_run_at, job.last_run_at, job.problem_reason, job.problem_message,
    job.ready_changed_at, status.succeeded, status.failed, status.cancelled, status.recovered, status.skipped,
    status.last_result, status.last_success_at, status.last_failure_at, status.revision, recent.tasks
FROM {schema}.jobs AS job
JOIN {schema}.job_status AS status ON status.job_id = job.id
CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_agg(to_jsonb(task) ORDER BY task.created_at DESC), '[]') AS tasks
    FROM (
        SELECT task.id, task.status, task.attempt, task.recoveries, task.scheduled_for, task.started_at,
            task.finished_at, task.created_at, left(task.error, 1024) AS error, worker.name AS worker,
            task.earlier_attempts -> -1 ->> 'evidence' AS evidence
        FROM {schema}.tasks AS task
        LEFT JOIN {schema}.workers AS worker ON worker.id = task.worker_id
        WHERE task.job_id = job.id
        ORDER BY task.created_at DESC
        LIMIT 50
    ) AS task
) AS recent
WHERE job.id = ANY(%(jobs)s::uuid[]);

-- name: statuses_written
-- Locked in the order in which fold_transitions locks them, or the two could wait for each other.
UPDATE {schema}.job_status AS status
SET written_revision = greatest(status.written_revision, locked.revision),
    write_after = now() + make_interval(secs => %(spacing_seconds)s)
FROM (
    SELECT job_id, written.revision
    FROM jsonb_to_recordset(%(written)s::jsonb) AS written(job_id uuid, revision bigint)
    JOIN {schema}.job_status AS known USING (job_id)
    ORDER BY job_id
    FOR UPDATE OF known
) AS locked
WHERE status.job_id = locked.job_id;

-- name: retry_statuses
UPDATE {schema}.job_status
SET write_after = now() + make_interval(secs => %(spacing_seconds)s)
WHERE job_id = ANY(ARRAY(
    SELECT job_id FROM {schema}.job_status WHERE job_id = ANY(%(jobs)s::uuid[]) ORDER BY job_id FOR UPDATE
));
