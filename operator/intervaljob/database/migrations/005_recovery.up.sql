-- What recovery keeps: policies of a job, the story of a task, and what is known of a worker's process.

-- resource_version is that of the newest sight that changed the row: annotations do not raise the generation.
-- Tasks whose queue job was inserted before `cancel_before` are to end as cancelled: a wish that no race loses.
ALTER TABLE {schema}.jobs
    ADD COLUMN resource_version bigint NOT NULL DEFAULT 0,
    ADD COLUMN recovery_policy text NOT NULL DEFAULT 'Rerun',
    ADD COLUMN recovery_limit integer NOT NULL DEFAULT 3,
    ADD COLUMN cancel_requested_at text,
    ADD COLUMN cancel_before timestamptz;

-- checkpoint_number is the present attempt's, so that a write that comes late replaces no newer one.
-- Attempts that were lost or followed by another, oldest first; the present or last one is in the task's own columns.
ALTER TABLE {schema}.tasks
    ADD COLUMN earlier_attempts jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN checkpoint_number integer NOT NULL DEFAULT 0;

-- The newest ten are kept.
CREATE FUNCTION {schema}.with_attempt(earlier jsonb, entry jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN jsonb_array_length(earlier) >= 10 THEN earlier - 0 ELSE earlier END
    || jsonb_build_array(jsonb_strip_nulls(entry));

-- process_started_at is the wall clock of the worker's node, as its kubelet has it.
-- A condemned worker renews no lease and claims nothing; it is alive until it has said goodbye or its lease has run out.
ALTER TABLE {schema}.workers
    ADD COLUMN process_started_at timestamptz,
    ADD COLUMN condemned_reason text;

-- A worker that is alive cannot be forgotten: its tasks would be given away while it runs them.
CREATE FUNCTION {schema}.refuse_to_forget_worker() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'worker % (%) has not ended', OLD.name, OLD.id
        USING HINT = 'Stop it, or wait for its lease to run out; rows with ended_at may be deleted.';
END
$$;

CREATE TRIGGER refuse_to_forget BEFORE DELETE ON {schema}.workers
    FOR EACH ROW WHEN (OLD.ended_at IS NULL) EXECUTE FUNCTION {schema}.refuse_to_forget_worker();
