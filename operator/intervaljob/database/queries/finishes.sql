-- name: finish_tasks
-- The fence: only the attempt that is running now, held by a worker that is alive, can end a task.
-- Who asked to cancel a task that would be tried again gets it cancelled (River §2.5).
-- An attempt that is followed by another goes into the task's story.
-- Returned are those that ended otherwise than their workers said, or not at all.
WITH input AS MATERIALIZED (
    SELECT task_id, attempt, output, error, entry, delay_seconds, status AS said,
        CASE
            WHEN status = 'retrying' AND EXISTS (
                SELECT
                FROM {schema}.tasks AS held
                LEFT JOIN {schema}.river_job AS queue_job ON queue_job.id = held.queue_job_id
                LEFT JOIN {schema}.jobs AS job ON job.id = held.job_id
                WHERE held.id = finish.task_id
                    AND (
                        queue_job.metadata ? 'cancel_attempted_at'
                        OR held.created_at < job.cancel_before
                        OR job.deleted_at IS NOT NULL
                    )
            ) THEN 'cancelled'
            ELSE status
        END AS status
    FROM jsonb_to_recordset(%(finishes)s::jsonb) AS finish(
        task_id uuid, attempt integer, status text, output jsonb, error text, entry jsonb, delay_seconds float8
    )
), fenced AS (
    UPDATE {schema}.tasks AS task
    SET status = input.status,
        output = input.output,
        error = input.error,
        failures = task.failures + CASE WHEN input.status IN ('failed', 'retrying') THEN 1 ELSE 0 END,
        finished_at = CASE WHEN input.status <> 'retrying' THEN clock_timestamp() END,
        earlier_attempts = CASE
            WHEN input.status = 'retrying' THEN {schema}.with_attempt(task.earlier_attempts, jsonb_build_object(
                'attempt', task.attempt, 'worker', %(worker_name)s::text, 'startedAt', task.started_at,
                'endedAt', clock_timestamp(), 'outcome', 'failed', 'error', left(input.error, 300)
            ))
            ELSE task.earlier_attempts
        END
    FROM input
    WHERE task.id = input.task_id
        AND task.attempt = input.attempt
        AND task.worker_id = %(worker)s
        AND task.status = 'running'
        AND EXISTS (SELECT FROM {schema}.workers WHERE id = %(worker)s AND ended_at IS NULL)
    RETURNING task.id, task.job_id, task.queue_job_id, task.attempt, task.status, task.error, input.entry, input.delay_seconds
), queue_jobs AS (
    UPDATE {schema}.river_job AS queue_job
    SET state = CASE fenced.status
            WHEN 'succeeded' THEN 'completed'
            WHEN 'failed' THEN 'discarded'
            WHEN 'cancelled' THEN 'cancelled'
            WHEN 'retrying' THEN CASE WHEN fenced.delay_seconds <= 5 THEN 'available' ELSE 'retryable' END
        END::{schema}.river_job_state,
        finalized_at = CASE WHEN fenced.status <> 'retrying' THEN now() END,
        scheduled_at = CASE
            WHEN fenced.status = 'retrying' THEN now() + make_interval(secs => fenced.delay_seconds)
            ELSE queue_job.scheduled_at
        END,
        errors = CASE
            WHEN fenced.entry IS NULL THEN queue_job.errors
            ELSE array_append(queue_job.errors[
                greatest(1, coalesce(array_length(queue_job.errors, 1), 0) - 8):
            ], fenced.entry)
        END
    FROM fenced
    WHERE queue_job.id = fenced.queue_job_id
        AND queue_job.state::text = 'running' -- a cast, since by statistics that say "none" the state's index is best
), noted AS (
    INSERT INTO {schema}.transitions (job_id, task_id, kind, detail)
    SELECT job_id, id, status, left(error, 300) FROM fenced
)
SELECT input.task_id AS id, input.attempt, fenced.status
FROM input
LEFT JOIN fenced ON fenced.id = input.task_id AND fenced.attempt = input.attempt
WHERE fenced.status IS DISTINCT FROM input.said;

-- name: save_checkpoint
UPDATE {schema}.tasks
SET checkpoint = %(checkpoint)s::jsonb, checkpoint_number = %(number)s
WHERE id = %(task)s AND attempt = %(attempt)s AND checkpoint_number <= %(number)s AND worker_id = %(worker)s AND status = 'running'
    AND EXISTS (SELECT FROM {schema}.workers WHERE id = %(worker)s AND ended_at IS NULL)
RETURNING id;
