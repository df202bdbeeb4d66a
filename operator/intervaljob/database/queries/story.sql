-- name: read_story
-- All that is known of one task, and the queue jobs that asked for it by its id.
SELECT task.id, task.job_id, task.status, task.attempt, task.recoveries, task.failures, task.created_at,
    task.scheduled_for, task.started_at, task.finished_at, task.error, task.queue_job_id, task.earlier_attempts,
    octet_length(task.checkpoint::text) AS checkpoint_bytes, octet_length(task.output::text) AS output_bytes,
    worker.name AS worker, job.namespace, job.name, job.handler, job.recovery_policy, job.recovery_limit,
    job.deleted_at IS NOT NULL AS job_deleted,
    (
        SELECT coalesce(jsonb_agg(jsonb_build_object('id', id, 'state', state) ORDER BY id), '[]')
        FROM {schema}.river_job
        WHERE args @> jsonb_build_object('task_id', task.id::text)
    ) AS recovery_jobs
FROM {schema}.tasks AS task
LEFT JOIN {schema}.jobs AS job ON job.id = task.job_id
LEFT JOIN {schema}.workers AS worker ON worker.id = task.worker_id
WHERE task.id = %(task)s;
