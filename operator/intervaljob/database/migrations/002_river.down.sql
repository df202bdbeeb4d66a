DROP TABLE {schema}.river_notification;
DROP TABLE {schema}.river_leader;
DROP TABLE {schema}.river_queue;
DROP TABLE {schema}.river_job;
DROP FUNCTION {schema}.river_job_state_in_bitmask(bit(8), {schema}.river_job_state);
DROP TYPE {schema}.river_job_state;
DROP TABLE {schema}.river_migration;
