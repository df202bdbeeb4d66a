-- name: claim_queue_jobs
-- River §2.4. A worker that was declared dead, or is to end, claims nothing; a paused queue gives nothing.
-- A plain queue job begins a task here and now: its args are as the scheduler writes them, it names no task, has not been
-- attempted before, and nothing of its job stands in the way. Of the others, which are left as they are, only their
-- place in the queue comes back. A task's id ends with its queue job's and begins like those that were claimed with it: such keys are written to
-- few pages of the index. The look begins at a place in the order of claims (worker/head.py).
WITH claim AS (
    SELECT gen_random_uuid()::text AS uuid
), picked AS (
    SELECT id, priority, scheduled_at, args, greatest('0001-01-02', least(created_at, '9999-01-01')) AS created_at,
        {schema}.occurrence_of(metadata, scheduled_at) AS due,
        attempt = 0 AND jsonb_typeof(args) = 'object' AND NOT args ? 'task_id'
            AND jsonb_typeof(args -> 'payload') = 'string'
            AND args ->> 'job_id' LIKE '________-____-____-____-____________' -- a third of one expression's time
            AND args ->> 'job_id' NOT LIKE '%%-%%-%%-%%-%%-%%'
            AND args ->> 'job_id' !~ '[^0-9a-f-]' AS is_new
    FROM {schema}.river_job
    WHERE state = 'available'
        AND queue = %(queue)s
        AND (priority, scheduled_at, id) >= (%(priority)s::smallint, %(scheduled_at)s::timestamptz, %(id)s::bigint)
        AND scheduled_at BETWEEN '0001-01-01' AND now()
        AND attempt < 32767
        AND kind = 'interval_job'
        AND EXISTS (
            SELECT FROM {schema}.workers WHERE id = %(worker)s AND ended_at IS NULL AND condemned_reason IS NULL
        )
        AND NOT EXISTS (SELECT FROM {schema}.river_queue WHERE name = %(queue)s AND paused_at IS NOT NULL)
    ORDER BY priority, scheduled_at, id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), known AS (
    SELECT picked.*, overlay(claim.uuid PLACING right(lpad(to_hex(picked.id), 16, '0'), 12) FROM 25)::uuid AS task_id,
        job.id AS job_id, job.user_id::text, job.workspace_id::text, job.handler, job.active_deadline_seconds, job.backoff_limit, job.backoff_initial_seconds,
        job.backoff_max_seconds
    FROM picked
    CROSS JOIN claim
    LEFT JOIN LATERAL (
        SELECT *
        FROM {schema}.jobs
        WHERE id = CASE WHEN picked.is_new THEN (picked.args ->> 'job_id')::uuid END
            AND user_id::text = picked.args ->> 'user_id'
            AND workspace_id::text = picked.args ->> 'workspace_id'
            AND deleted_at IS NULL
            AND concurrency_policy <> 'Replace'
            AND picked.created_at >= coalesce(cancel_before, '-infinity')
            AND NOT EXISTS (SELECT FROM {schema}.tasks WHERE queue_job_id = picked.id)
        LIMIT 1
    ) AS job ON true
), claimed AS (
    UPDATE {schema}.river_job
    SET state = 'running',
        attempt = 1,
        attempted_at = now(),
        attempted_by = (array_append(attempted_by, %(worker)s::text))[
            greatest(1, coalesce(array_length(attempted_by, 1), 0) - 98):
        ]
    WHERE id = ANY(ARRAY(SELECT id FROM known WHERE job_id IS NOT NULL))
), began AS (
    INSERT INTO {schema}.tasks (
        id, job_id, queue_job_id, payload, status, attempt, worker_id, scheduled_for, started_at, created_at
    )
    SELECT task_id, job_id, id, args ->> 'payload', 'running', 1, %(worker)s, due, clock_timestamp(), created_at
    FROM known
    WHERE job_id IS NOT NULL
)
SELECT priority, scheduled_at, id,
    CASE WHEN job_id IS NOT NULL THEN task_id END AS task_id, job_id, user_id, workspace_id, id AS queue_job_id, handler,
    CASE WHEN job_id IS NOT NULL THEN args ->> 'payload' END AS payload, due, created_at, active_deadline_seconds,
    backoff_limit, backoff_initial_seconds, backoff_max_seconds
FROM known;

-- name: claim_other_queue_jobs
-- Of the args, which anybody may have inserted, only what is read comes back, and of that only strings.
WITH picked AS (
    SELECT id
    FROM {schema}.river_job
    WHERE id = ANY(%(queue_jobs)s::bigint[])
        AND state::text = 'available'
        AND EXISTS (
            SELECT FROM {schema}.workers WHERE id = %(worker)s AND ended_at IS NULL AND condemned_reason IS NULL
        )
    FOR UPDATE SKIP LOCKED
)
UPDATE {schema}.river_job
SET state = 'running',
    attempt = attempt + 1,
    attempted_at = now(),
    attempted_by = (array_append(attempted_by, %(worker)s::text))[
        greatest(1, coalesce(array_length(attempted_by, 1), 0) - 98):
    ]
WHERE id = ANY(ARRAY(SELECT id FROM picked))
RETURNING id, CASE WHEN jsonb_typeof(args) = 'object' THEN (
        SELECT coalesce(
            jsonb_object_agg(key, CASE WHEN jsonb_typeof(value) IN ('string', 'null') THEN value ELSE 'false' END), '{}'
        )
        FROM jsonb_each(args)
        WHERE key IN ('job_id', 'user_id', 'workspace_id', 'payload', 'task_id')
    ) END AS args, attempt, greatest('0001-01-02', least(created_at, '9999-01-01')) AS created_at,
    {schema}.occurrence_of(metadata, scheduled_at) AS due, now() AS now;

-- name: look_up_claims
-- A recovery job names its task; a retried queue job is found by itself. Of a Replace job's tasks the newest is the one
-- that runs, since none begins before it has ended, so a look at the newest fifty sees it.
SELECT claim.queue_job_id,
    job.id AS job_id, job.deleted_at, job.cancel_before, job.concurrency_policy, job.handler, job.name, job.namespace, job.active_deadline_seconds,
    job.backoff_limit, job.backoff_initial_seconds, job.backoff_max_seconds,
    task.id AS task_id, task.job_id AS task_job_id, task.status, task.attempt, task.recoveries, task.failures,
    task.checkpoint::text AS checkpoint, task.payload AS task_payload, task.scheduled_for, task.created_at AS task_created_at,
    job.concurrency_policy = 'Replace' AND EXISTS (
        SELECT
        FROM (
            SELECT id, status FROM {schema}.tasks WHERE job_id = job.id ORDER BY created_at DESC LIMIT 50
        ) AS other
        WHERE other.status = 'running' AND other.id IS DISTINCT FROM task.id
    ) AS predecessor_runs
FROM jsonb_to_recordset(%(claims)s::jsonb) AS claim(queue_job_id bigint, job_id uuid, task_id uuid)
LEFT JOIN LATERAL (SELECT * FROM {schema}.jobs WHERE id = claim.job_id LIMIT 1) AS job ON true
LEFT JOIN LATERAL (
    SELECT * FROM {schema}.tasks WHERE id = claim.task_id
    UNION ALL
    SELECT * FROM {schema}.tasks WHERE queue_job_id = claim.queue_job_id AND claim.task_id IS NULL
) AS task ON true;

-- name: lock_replacing_jobs
-- Two queue jobs of one Replace job are looked at one after the other.
SELECT id FROM {schema}.jobs WHERE id = ANY(%(jobs)s::uuid[]) ORDER BY id FOR NO KEY UPDATE;

-- name: defer_queue_jobs
-- As River's snooze: it is no attempt. The occurrence keeps its time.
UPDATE {schema}.river_job
SET state = 'available', attempt = attempt - 1, scheduled_at = now() + make_interval(secs => %(seconds)s),
    metadata = jsonb_build_object('intervaljob:occurrence', extract(epoch FROM scheduled_at)) || metadata
WHERE id = ANY(%(queue_jobs)s::bigint[]) AND state = 'running';

-- name: start_tasks
-- A task is as old as the queue job that asked for it: a wish to cancel what was there before is judged by that.
INSERT INTO {schema}.tasks (
    id, job_id, queue_job_id, payload, status, attempt, worker_id, scheduled_for, started_at, created_at
)
SELECT task_id, job_id, queue_job_id, payload, 'running', 1, %(worker)s, scheduled_for, clock_timestamp(), created_at
FROM jsonb_to_recordset(%(tasks)s::jsonb) AS new(
    task_id uuid, job_id uuid, queue_job_id bigint, payload text, scheduled_for timestamptz, created_at timestamptz
)
ON CONFLICT DO NOTHING
RETURNING queue_job_id, attempt;

-- name: resume_tasks
-- Raising the attempt is the fence: whatever an earlier attempt still sends names a lower one.
UPDATE {schema}.tasks AS task
SET status = 'running', attempt = task.attempt + 1, worker_id = %(worker)s,
    queue_job_id = claim.queue_job_id, started_at = clock_timestamp(), finished_at = NULL,
    checkpoint_number = 0
FROM jsonb_to_recordset(%(tasks)s::jsonb) AS claim(task_id uuid, queue_job_id bigint)
WHERE task.id = claim.task_id AND task.status IN ('recovering', 'retrying')
RETURNING task.queue_job_id, task.attempt;

-- name: note_started
-- For the status: an attempt that still runs is news, one that was quick is news by its end alone.
INSERT INTO {schema}.transitions (job_id, task_id, kind)
SELECT job_id, id, 'started'
FROM {schema}.tasks
WHERE id = ANY(%(tasks)s::uuid[]) AND worker_id = %(worker)s AND status = 'running';

-- name: refuse_queue_jobs
-- A queue job that cannot be run ends with an entry that says why; a task that waited for it ends with it.
WITH refused AS (
    UPDATE {schema}.river_job AS queue_job
    SET state = 'cancelled', finalized_at = now(), errors = array_append(queue_job.errors, refusal.entry)
    FROM jsonb_to_recordset(%(refusals)s::jsonb) AS refusal(queue_job_id bigint, entry jsonb)
    WHERE queue_job.id = refusal.queue_job_id AND queue_job.state = 'running'
    RETURNING queue_job.id, refusal.entry ->> 'error' AS error
), ended AS (
    UPDATE {schema}.tasks AS task
    SET status = 'cancelled', finished_at = now(), error = refused.error
    FROM refused
    WHERE task.queue_job_id = refused.id AND task.status IN ('recovering', 'retrying')
    RETURNING task.id, task.job_id, task.error
)
INSERT INTO {schema}.transitions (job_id, task_id, kind, detail)
SELECT job_id, id, 'cancelled', error FROM ended;
