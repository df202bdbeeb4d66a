-- name: lock_due_jobs
SELECT id, queue, concurrency_policy, interval_seconds, schedule, time_zone, jitter_seconds, anchor, runnable_since,
    next_run_at, now() AS now
FROM {schema}.jobs
WHERE cluster_id = %(cluster)s
    AND next_run_at <= now()
    AND NOT suspended
    AND deleted_at IS NULL
    AND (%(namespaces)s::text[] = '{}' OR namespace = ANY(%(namespaces)s::text[]))
ORDER BY next_run_at
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;

-- name: insert_occurrences
-- What is due later than its own time, by jitter, keeps that in its metadata, as one that is deferred does.
-- Under Forbid the unique key refuses a second unfinished queue job, and a hold stands for those without the key.
INSERT INTO {schema}.river_job (
    kind, args, queue, priority, max_attempts, created_at, scheduled_at, metadata, unique_key, unique_states
)
SELECT 'interval_job',
    jsonb_build_object(
        'job_id', job.id, 'user_id', job.user_id, 'workspace_id', job.workspace_id, 'payload', job.payload
    ),
    job.queue, job.priority, job.backoff_limit + 1, clock_timestamp(), new.due,
    CASE
        WHEN new.due = new.occurrence THEN '{}'
        ELSE jsonb_build_object('intervaljob:occurrence', extract(epoch FROM new.occurrence))
    END,
    decode(new.unique_key, 'hex'), CASE WHEN new.unique_key IS NOT NULL THEN %(active_states)s::bit(8) END
FROM jsonb_to_recordset(%(occurrences)s::jsonb) AS new(
    job_id uuid, due timestamptz, occurrence timestamptz, unique_key text
)
JOIN {schema}.jobs AS job ON job.id = new.job_id
WHERE new.unique_key IS NULL OR NOT EXISTS (
    SELECT
    FROM {schema}.forbid_holds AS hold
    JOIN {schema}.river_job AS held ON held.id = hold.queue_job_id
    WHERE hold.job_id = new.job_id AND held.state NOT IN ('cancelled', 'completed', 'discarded')
)
ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND unique_states IS NOT NULL
    AND {schema}.river_job_state_in_bitmask(unique_states, state)
    DO NOTHING
RETURNING id, (args ->> 'job_id')::uuid AS job_id;

-- name: withdraw_held_occurrences
-- An insert that waited until a recovery gave the unique key free did not see the hold which that put up for it.
DELETE FROM {schema}.river_job AS queue_job
WHERE id = ANY(%(queue_jobs)s::bigint[])
    AND unique_key IS NOT NULL
    AND EXISTS (
        SELECT
        FROM {schema}.forbid_holds AS hold
        JOIN {schema}.river_job AS held ON held.id = hold.queue_job_id
        WHERE hold.job_id = (queue_job.args ->> 'job_id')::uuid
            AND held.state NOT IN ('cancelled', 'completed', 'discarded')
    )
RETURNING (args ->> 'job_id')::uuid AS job_id;

-- name: advance_jobs
UPDATE {schema}.jobs AS job
SET next_run_at = advance.next_run_at, last_run_at = coalesce(advance.last_run_at, job.last_run_at)
FROM jsonb_to_recordset(%(advances)s::jsonb) AS advance(
    job_id uuid, next_run_at timestamptz, last_run_at timestamptz
)
WHERE job.id = advance.job_id;

-- name: set_jobs_aside
UPDATE {schema}.jobs AS job
SET next_run_at = NULL, problem_reason = 'InvalidSchedule', problem_message = problem.message,
    ready_changed_at = now()
FROM jsonb_to_recordset(%(problems)s::jsonb) AS problem(job_id uuid, message text)
WHERE job.id = problem.job_id;

-- name: note_scheduled
INSERT INTO {schema}.transitions (job_id, kind)
SELECT job_id, 'scheduled' FROM unnest(%(jobs)s::uuid[]) AS job_id;

-- name: record_skips
WITH skipped AS (
    INSERT INTO {schema}.skipped_occurrences AS ledger (job_id, reason, first_at, last_at, count)
    SELECT job_id, reason, first_at, last_at, count
    FROM jsonb_to_recordset(%(skips)s::jsonb) AS skip(
        job_id uuid, reason text, first_at timestamptz, last_at timestamptz, count bigint
    )
    ORDER BY job_id, reason
    ON CONFLICT (job_id, reason) DO UPDATE
    SET first_at = least(ledger.first_at, excluded.first_at),
        last_at = greatest(ledger.last_at, excluded.last_at),
        count = ledger.count + excluded.count
)
INSERT INTO {schema}.transitions (job_id, kind, count, detail)
SELECT job_id, 'skipped', count, reason
FROM jsonb_to_recordset(%(skips)s::jsonb) AS skip(job_id uuid, reason text, count bigint);

-- name: seconds_to_next_due
SELECT extract(epoch FROM next_run_at - clock_timestamp())::float8 AS seconds
FROM {schema}.jobs
WHERE cluster_id = %(cluster)s
    AND next_run_at IS NOT NULL
    AND NOT suspended
    AND deleted_at IS NULL
    AND (%(namespaces)s::text[] = '{}' OR namespace = ANY(%(namespaces)s::text[]))
ORDER BY next_run_at
LIMIT 1;

-- name: promote_queue_jobs
-- River's scheduler (§2.9), for our kind: what waits for its time becomes available shortly before it. By its state alone
-- it is found: the index on the kind, which statistics of a young table take for a short one, names every queue job.
WITH promoted AS (
    UPDATE {schema}.river_job
    SET state = 'available'
    WHERE id = ANY(ARRAY(
        SELECT id
        FROM {schema}.river_job
        WHERE state IN ('retryable', 'scheduled')
            AND kind || '' = 'interval_job'
            AND scheduled_at <= now() + make_interval(secs => %(ahead_seconds)s)
        ORDER BY priority, scheduled_at, id
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING queue, scheduled_at
), notified AS (
    SELECT pg_notify('{schema}.river_insert', json_build_object('queue', queue)::text)
    FROM (SELECT DISTINCT queue FROM promoted WHERE scheduled_at <= now()) AS queues
)
SELECT (SELECT count(*) FROM promoted) AS promoted, (SELECT count(*) FROM notified) AS notified;
