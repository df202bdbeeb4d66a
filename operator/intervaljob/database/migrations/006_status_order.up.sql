-- Which statuses are written first: until then somebody looks at the IntervalJob, which was edited or told to run, or has
-- failed.
ALTER TABLE {schema}.job_status ADD COLUMN watched_until timestamptz NOT NULL DEFAULT 'epoch';

CREATE INDEX job_status_watched ON {schema}.job_status (watched_until) WHERE revision > written_revision;
