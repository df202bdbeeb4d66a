-- name: register_worker
-- Registering ends every earlier incarnation of the same worker: whoever starts in a pod's place proves it dead.
WITH tick AS (
    UPDATE {schema}.lease_clock
    SET witnessed_at = witnessed_at
            + greatest(least(clock_timestamp() - ticked_at, interval '2 seconds'), interval '0'),
        ticked_at = clock_timestamp()
    RETURNING witnessed_at
), superseded AS (
    UPDATE {schema}.workers
    SET ended_at = now(), end_reason = 'superseded'
    WHERE ended_at IS NULL AND id <> %(worker)s AND (name = %(name)s OR pod_uid = %(pod_uid)s)
), queues AS (
    INSERT INTO {schema}.river_queue (name, updated_at)
    SELECT name, now() FROM unnest(%(queues)s::text[]) AS name
    ON CONFLICT (name) DO UPDATE SET updated_at = excluded.updated_at
)
INSERT INTO {schema}.workers (id, name, pod_uid, version, queues, lease_seconds, lease_expires_at)
SELECT %(worker)s, %(name)s, %(pod_uid)s, %(version)s, %(queues)s, %(lease_seconds)s,
    witnessed_at + make_interval(secs => %(lease_seconds)s)
FROM tick;

-- name: renew_lease
-- The witness advances in the same statement: a renewal reckoned from one that lags would run out early.
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
WHERE worker.id = %(worker)s AND worker.ended_at IS NULL
RETURNING worker.id;

-- name: tick_and_end_expired
-- A gap between two looks counts as two seconds at most, and a clock that was set back as none.
WITH tick AS (
    UPDATE {schema}.lease_clock
    SET witnessed_at = witnessed_at
            + greatest(least(clock_timestamp() - ticked_at, interval '2 seconds'), interval '0'),
        ticked_at = clock_timestamp()
    RETURNING witnessed_at
)
UPDATE {schema}.workers AS worker
SET ended_at = now(), end_reason = 'lease_expired'
FROM tick
WHERE worker.ended_at IS NULL AND worker.lease_expires_at < tick.witnessed_at
RETURNING worker.id, worker.name;

-- name: end_worker
UPDATE {schema}.workers
SET ended_at = now(), end_reason = %(reason)s
WHERE id = %(worker)s AND ended_at IS NULL
RETURNING id;

-- name: held_tasks
-- Which of these attempts the worker still holds, and whether somebody asked to cancel them (River §2.8).
SELECT task.id, task.attempt, coalesce(queue_job.metadata ? 'cancel_attempted_at', false) AS cancel
FROM {schema}.tasks AS task
LEFT JOIN {schema}.river_job AS queue_job ON queue_job.id = task.queue_job_id
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
