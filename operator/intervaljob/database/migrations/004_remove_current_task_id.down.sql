ALTER TABLE {schema}.jobs ADD COLUMN current_task_id uuid;

UPDATE {schema}.jobs AS job
SET current_task_id = task.id
FROM (
    SELECT DISTINCT ON (job_id) job_id, id
    FROM {schema}.tasks
    WHERE status IN ('running', 'recovering', 'retrying')
    ORDER BY job_id, created_at DESC, id
) AS task
WHERE task.job_id = job.id;
