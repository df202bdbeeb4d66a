-- What the operator and the workers keep beside River's tables.

-- A job made by an operator has a cluster; those of the legacy schema have none, and any operator recovers them.
ALTER TABLE {schema}.jobs
    ADD COLUMN cluster_id text,
    ADD COLUMN namespace text NOT NULL DEFAULT '',
    ADD COLUMN name text NOT NULL DEFAULT '',
    ADD COLUMN generation bigint NOT NULL DEFAULT 0,
    ADD COLUMN handler text NOT NULL DEFAULT 'legacy',
    ADD COLUMN queue text NOT NULL DEFAULT 'default',
    ADD COLUMN priority smallint NOT NULL DEFAULT 1,
    ADD COLUMN schedule text,
    ADD COLUMN time_zone text,
    ADD COLUMN anchor timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN concurrency_policy text NOT NULL DEFAULT 'Allow',
    ADD COLUMN active_deadline_seconds integer,
    ADD COLUMN backoff_limit integer NOT NULL DEFAULT 3,
    ADD COLUMN backoff_initial_seconds integer NOT NULL DEFAULT 10,
    ADD COLUMN backoff_max_seconds integer NOT NULL DEFAULT 360,
    ADD COLUMN suspended boolean NOT NULL DEFAULT false,
    ADD COLUMN runnable_since timestamptz,
    ADD COLUMN next_run_at timestamptz,
    ADD COLUMN last_run_at timestamptz,
    ADD COLUMN run_requested_at text,
    ADD COLUMN problem_reason text,
    ADD COLUMN problem_message text,
    ADD COLUMN ready_changed_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN deleted_at timestamptz;

CREATE INDEX jobs_due ON {schema}.jobs (cluster_id, next_run_at)
    WHERE next_run_at IS NOT NULL AND NOT suspended AND deleted_at IS NULL;

-- No index here names a column that changes when a task ends, so that ending one is a heap-only update.
ALTER TABLE {schema}.tasks
    ADD COLUMN queue_job_id bigint,
    ADD COLUMN payload text NOT NULL DEFAULT '',
    ADD COLUMN attempt integer NOT NULL DEFAULT 0,
    ADD COLUMN recoveries integer NOT NULL DEFAULT 0,
    ADD COLUMN failures integer NOT NULL DEFAULT 0,
    ADD COLUMN worker_id uuid,
    ADD COLUMN scheduled_for timestamptz,
    ADD COLUMN checkpoint jsonb,
    ADD COLUMN output jsonb,
    ADD COLUMN error text,
    ADD CONSTRAINT tasks_status CHECK (
        status IN ('running', 'recovering', 'retrying', 'succeeded', 'failed', 'cancelled')
    );

ALTER TABLE {schema}.tasks SET (fillfactor = 85);
CREATE INDEX tasks_of_job ON {schema}.tasks (job_id, created_at);
CREATE UNIQUE INDEX tasks_of_queue_job ON {schema}.tasks (queue_job_id) WHERE queue_job_id IS NOT NULL;

-- One row per incarnation. lease_expires_at is witnessed time (lease_clock), ended_at is the wall clock's.
CREATE TABLE {schema}.workers (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    pod_uid text,
    version text NOT NULL,
    queues text[] NOT NULL,
    lease_seconds double precision NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    lease_expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    end_reason text
);

CREATE INDEX workers_alive ON {schema}.workers (lease_expires_at) WHERE ended_at IS NULL;

-- Lease time: it advances only while somebody looks, at most two seconds a look, so an outage makes nobody look dead.
CREATE TABLE {schema}.lease_clock (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    witnessed_at timestamptz NOT NULL,
    ticked_at timestamptz NOT NULL
);

INSERT INTO {schema}.lease_clock (witnessed_at, ticked_at) VALUES (clock_timestamp(), clock_timestamp());

-- The ledger of occurrences that were not run.
CREATE TABLE {schema}.skipped_occurrences (
    job_id uuid NOT NULL,
    reason text NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (job_id, reason)
);

-- Unfinished queue jobs of Forbid jobs that cannot carry the job's unique key, because another one does.
CREATE TABLE {schema}.forbid_holds (
    job_id uuid NOT NULL,
    queue_job_id bigint NOT NULL,
    PRIMARY KEY (job_id, queue_job_id)
);

-- What happened, written in the transaction in which it happened; the operator folds it into job_status and events.
CREATE TABLE {schema}.transitions (
    id bigserial PRIMARY KEY,
    job_id uuid NOT NULL,
    task_id uuid,
    kind text NOT NULL,
    count bigint NOT NULL DEFAULT 1,
    detail text,
    at timestamptz NOT NULL DEFAULT now()
);

-- The status' bookkeeping: revision is ahead of written_revision while the custom resource shows something older.
CREATE TABLE {schema}.job_status (
    job_id uuid PRIMARY KEY,
    succeeded bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    cancelled bigint NOT NULL DEFAULT 0,
    recovered bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    last_cancel_at timestamptz,
    last_result text GENERATED ALWAYS AS (
        CASE greatest(last_success_at, last_failure_at, last_cancel_at)
            WHEN last_success_at THEN 'succeeded'
            WHEN last_failure_at THEN 'failed'
            WHEN last_cancel_at THEN 'cancelled'
        END
    ) STORED,
    revision bigint NOT NULL DEFAULT 1,
    written_revision bigint NOT NULL DEFAULT 0,
    write_after timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);

CREATE INDEX job_status_unwritten ON {schema}.job_status (write_after) WHERE revision > written_revision;
