-- Attempts end in batches, which update whole pages at once: half a page is left free for that, or most updates would
-- find no room and need an entry in every index.
ALTER TABLE {schema}.tasks SET (fillfactor = 50);

-- Rows come and go by the thousand a second, and a vacuum that waits for a fifth of a table to die, as by default, comes
-- late. These begin at one in a hundred, and do ten times as much before they pause.
ALTER TABLE {schema}.tasks SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_limit = 2000
);
ALTER TABLE {schema}.jobs SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_limit = 2000
);
ALTER TABLE {schema}.job_status SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_limit = 2000
);
-- Small tables of which every row is replaced: vacuumed whenever somebody looks, and without a pause.
ALTER TABLE {schema}.transitions SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE {schema}.workers SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE {schema}.lease_clock SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_cost_delay = 0
);

-- What is to be deleted is found without reading what stays.
CREATE INDEX jobs_retired ON {schema}.jobs (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX workers_ended ON {schema}.workers (ended_at) WHERE ended_at IS NOT NULL;
