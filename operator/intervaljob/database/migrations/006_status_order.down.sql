ALTER TABLE {schema}.job_status DROP COLUMN watched_until;
