-- name: lock_migrations
SELECT pg_advisory_xact_lock(hashtextextended('intervaljob migrations ' || %(schema)s, 0));

-- name: create_migration_table
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.intervaljob_migration (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: migration_table_exists
SELECT to_regclass(%(schema)s || '.intervaljob_migration') IS NOT NULL AS present;

-- name: applied_migrations
SELECT version, name, applied_at FROM {schema}.intervaljob_migration ORDER BY version;

-- name: record_migration
INSERT INTO {schema}.intervaljob_migration (version, name) VALUES (%(version)s, %(name)s);

-- name: forget_migration
DELETE FROM {schema}.intervaljob_migration WHERE version = %(version)s;
