-- How many seconds a job's occurrences are spread over. next_run_at is when the next one is due, its jitter included; the
-- time that the schedule says is that less the job's share of the jitter (model/schedule.py).
ALTER TABLE {schema}.jobs ADD COLUMN jitter_seconds integer NOT NULL DEFAULT 0;
