-- name: register_worker
-- Registering ends every earlier incarnation of the same worker: whoever starts in a pod's place proves it dead.
-- Returns those. One that registered after this was asked for is left alone: it is this that comes late.
-- The clock is taken before their rows, as by renewals, so that the two do not wait for each other.
WITH tick AS (
    UPDATE {schema}.lease_clock
    SET witnessed_at = witnessed_at
            + greatest(least(clock_timestamp() - ticked_at, interval '2 seconds'), interval '0'),
        ticked_at = clock_timestamp()
    RETURNING witnessed_at
), superseded AS (
    UPDATE {schema}.workers
    SET ended_at = now(), end_reason = 'superseded'
    FROM tick
    WHERE ended_at IS NULL AND id <> %(worker)s AND started_at <= %(asked_at)s AND (name = %(name)s OR pod_uid = %(pod_uid)s)
    RETURNING id, name
), queues AS (
    INSERT INTO {schema}.river_queue (name, updated_at)
    SELECT name, now() FROM unnest(%(queues)s::text[]) AS name
    ON CONFLICT (name) DO UPDATE SET updated_at = excluded.updated_at
), registered AS (
    INSERT INTO {schema}.workers (
        id, name, pod_uid, version, queues, lease_seconds, lease_expires_at, process_started_at
    )
    SELECT %(worker)s, %(name)s, %(pod_uid)s, %(version)s, %(queues)s, %(lease_seconds)s,
        witnessed_at + make_interval(secs => %(lease_seconds)s), %(process_started_at)s
    FROM tick
)
SELECT id, name, pg_notify('{schema}.worker_ended', json_build_object('worker', id)::text) FROM superseded;

-- name: renew_lease
-- The witness advances in the same statement: a renewal reckoned from one that lags would run out early.
-- A condemned worker is to end: its lease is the bound for one that does not hear of it.
WITH tick AS (
    UPDATE {schema}.lease_clock
    SET witnessed_at = witnessed_at
            + greatest(least(clock_timestamp() - ticked_at, interval '2 seconds'), interval '0'),
        ticked_at = clock_timestamp()
    RETURNING witnessed_at
)
UPDATE {schema}.workers AS worker
SET lease_expires_at = tick.witnessed_at + make_interval(secs => worker.lease_seconds)
FROM tick
WHERE worker.id = %(worker)s AND worker.ended_at IS NULL AND worker.condemned_reason IS NULL
RETURNING worker.id;

-- name: tick_and_end_expired
-- A gap between two looks counts as two seconds at most, and a clock that was set back as none.
-- Returns who ended, one row without a worker when nobody did, the seconds until the next lease runs out, and whether
-- a worker that had ended before holds a running task, of whatever cluster: sought before the clock is locked, for which
-- renewals wait.
WITH orphans AS MATERIALIZED (
    SELECT EXISTS (
        SELECT
        FROM {schema}.river_job AS queue_job
        JOIN {schema}.tasks AS task ON task.queue_job_id = queue_job.id
        LEFT JOIN {schema}.workers AS worker ON worker.id = task.worker_id
        WHERE queue_job.state = 'running'
            AND queue_job.kind = 'interval_job'
            AND task.status = 'running'
            AND (worker.id IS NULL OR worker.ended_at IS NOT NULL)
    ) AS found
), tick AS (
    UPDATE {schema}.lease_clock
    SET witnessed_at = witnessed_at
            + greatest(least(clock_timestamp() - ticked_at, interval '2 seconds'), interval '0'),
        ticked_at = clock_timestamp()
    FROM orphans
    RETURNING witnessed_at, orphans.found
), ended AS (
    UPDATE {schema}.workers AS worker
    SET ended_at = now(), end_reason = 'lease_expired'
    FROM tick
    WHERE worker.ended_at IS NULL AND worker.lease_expires_at < tick.witnessed_at
    RETURNING worker.id, worker.name
), next AS (
    SELECT extract(epoch FROM min(worker.lease_expires_at - tick.witnessed_at))::float8 AS seconds
    FROM tick
    JOIN {schema}.workers AS worker ON worker.ended_at IS NULL AND worker.lease_expires_at >= tick.witnessed_at
)
SELECT ended.id, ended.name, next.seconds, ended.id IS NOT NULL OR (SELECT found FROM tick) AS orphans,
    CASE
        WHEN ended.id IS NOT NULL
            THEN pg_notify('{schema}.worker_ended', json_build_object('worker', ended.id)::text)
    END
FROM next
LEFT JOIN ended ON true;

-- name: end_worker
WITH ended AS (
    UPDATE {schema}.workers
    SET ended_at = now(), end_reason = %(reason)s
    WHERE id = %(worker)s AND ended_at IS NULL
    RETURNING id, name
)
SELECT id, name, pg_notify('{schema}.worker_ended', json_build_object('worker', id)::text) FROM ended;

-- name: end_condemned_worker
-- The worker's own goodbye, for the reason for which it was condemned; nothing for one that was not.
WITH ended AS (
    UPDATE {schema}.workers
    SET ended_at = now(), end_reason = condemned_reason
    WHERE id = %(worker)s AND ended_at IS NULL AND condemned_reason IS NOT NULL
    RETURNING id, name, end_reason
)
SELECT id, name, end_reason, pg_notify('{schema}.worker_ended', json_build_object('worker', id)::text) FROM ended;

-- name: end_workers_of_containers
-- Incarnations whose container has ended. A later container of the same Pod started its process after that.
WITH ended AS (
    UPDATE {schema}.workers AS worker
    SET ended_at = now(), end_reason = container.reason
    FROM jsonb_to_recordset(%(containers)s::jsonb) AS container(pod_uid text, finished_at timestamptz, reason text)
    WHERE worker.ended_at IS NULL
        AND worker.pod_uid = container.pod_uid
        AND worker.process_started_at < container.finished_at
    RETURNING worker.id, worker.name, worker.end_reason
)
SELECT id, name, end_reason, pg_notify('{schema}.worker_ended', json_build_object('worker', id)::text) FROM ended;

-- name: condemn_workers_of_pods
-- Their processes may run: they are not ended here, but told to end.
WITH condemned AS (
    UPDATE {schema}.workers
    SET condemned_reason = %(reason)s
    WHERE ended_at IS NULL AND condemned_reason IS NULL AND pod_uid = ANY(%(pod_uids)s::text[])
    RETURNING id, name
)
SELECT id, name, pg_notify('{schema}.worker_condemned', json_build_object('worker', id)::text) FROM condemned;

-- name: held_tasks
-- Which of these attempts the worker still holds, and whether somebody asked to cancel them (River §2.8).
SELECT task.id, task.attempt,
    coalesce(queue_job.metadata ? 'cancel_attempted_at', false)
        OR coalesce(task.created_at < job.cancel_before OR job.deleted_at IS NOT NULL, false) AS cancel
FROM {schema}.tasks AS task
LEFT JOIN {schema}.river_job AS queue_job ON queue_job.id = task.queue_job_id
LEFT JOIN {schema}.jobs AS job ON job.id = task.job_id
WHERE task.id = ANY(%(tasks)s::uuid[]) AND task.status = 'running' AND task.worker_id = %(worker)s;

-- name: unknown_tasks
-- What the worker holds without knowing it. Found through River's index on running queue jobs.
SELECT task.id, task.attempt
FROM {schema}.river_job AS queue_job
JOIN {schema}.tasks AS task ON task.queue_job_id = queue_job.id
WHERE queue_job.state = 'running'
    AND queue_job.kind = 'interval_job'
    AND task.status = 'running'
    AND task.worker_id = %(worker)s
    AND NOT task.id = ANY(%(known)s::uuid[]);

-- name: refresh_queues
-- River's clients delete queues that nobody refreshed for a day (River §2.10).
UPDATE {schema}.river_queue SET updated_at = now()
WHERE name = ANY(%(queues)s::text[]) AND updated_at < now() - interval '10 minutes';
