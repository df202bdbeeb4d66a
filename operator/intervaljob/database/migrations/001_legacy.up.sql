-- The schema as it was before the operator: a job pointed at its running task.
CREATE TABLE IF NOT EXISTS {schema}.jobs (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    workspace_id uuid NOT NULL,
    payload text NOT NULL DEFAULT '',
    interval_seconds integer,
    current_task_id uuid,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS {schema}.tasks (
    id uuid PRIMARY KEY,
    job_id uuid NOT NULL,
    status text NOT NULL DEFAULT 'running',
    started_at timestamptz,
    finished_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
