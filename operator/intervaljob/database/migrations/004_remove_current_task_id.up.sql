-- What current_task_id pointed at becomes a running task without a worker: the next recovery finds it.
-- A pointer at a task that had ended already was stale, and the task stays as it ended.
INSERT INTO {schema}.tasks (id, job_id, payload, status, started_at)
SELECT current_task_id, id, payload, 'running', now()
FROM {schema}.jobs
WHERE current_task_id IS NOT NULL
ON CONFLICT (id) DO UPDATE SET payload = excluded.payload
    WHERE {schema}.tasks.status = 'running';

ALTER TABLE {schema}.jobs DROP COLUMN current_task_id;
