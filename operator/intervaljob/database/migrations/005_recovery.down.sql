DROP TRIGGER refuse_to_forget ON {schema}.workers;
DROP FUNCTION {schema}.refuse_to_forget_worker();
ALTER TABLE {schema}.workers DROP COLUMN condemned_reason, DROP COLUMN process_started_at;
ALTER TABLE {schema}.tasks DROP COLUMN checkpoint_number, DROP COLUMN earlier_attempts;
DROP FUNCTION {schema}.with_attempt(jsonb, jsonb);
ALTER TABLE {schema}.jobs
    DROP COLUMN cancel_before, DROP COLUMN cancel_requested_at, DROP COLUMN recovery_limit, DROP COLUMN recovery_policy,
    DROP COLUMN resource_version;
