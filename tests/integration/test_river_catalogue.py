"""River's tables are River's, to the letter: its clients and tools rely on these names and definitions."""

import psycopg
import pytest
from support import Execute

STATES = ["available", "cancelled", "completed", "discarded", "pending", "retryable", "running", "scheduled"]

COLUMNS = {
    "river_job": [
        ("id", "bigint", True, "nextval('intervaljob.river_job_id_seq'::regclass)"),
        ("state", "intervaljob.river_job_state", True, "'available'::intervaljob.river_job_state"),
        ("attempt", "smallint", True, "0"),
        ("max_attempts", "smallint", True, "25"),
        ("attempted_at", "timestamp with time zone", False, None),
        ("created_at", "timestamp with time zone", True, "now()"),
        ("finalized_at", "timestamp with time zone", False, None),
        ("scheduled_at", "timestamp with time zone", True, "now()"),
        ("priority", "smallint", True, "1"),
        ("args", "jsonb", True, None),
        ("attempted_by", "text[]", False, None),
        ("errors", "jsonb[]", False, None),
        ("kind", "text", True, None),
        ("metadata", "jsonb", True, "'{}'::jsonb"),
        ("queue", "text", True, "'default'::text"),
        ("tags", "character varying(255)[]", True, "'{}'::character varying[]"),
        ("unique_key", "bytea", False, None),
        ("unique_states", "bit(8)", False, None),
    ],
    "river_queue": [
        ("name", "text", True, None),
        ("created_at", "timestamp with time zone", True, "now()"),
        ("metadata", "jsonb", True, "'{}'::jsonb"),
        ("paused_at", "timestamp with time zone", False, None),
        ("updated_at", "timestamp with time zone", True, "CURRENT_TIMESTAMP"),
    ],
    "river_leader": [
        ("elected_at", "timestamp with time zone", True, None),
        ("expires_at", "timestamp with time zone", True, None),
        ("leader_id", "text", True, None),
        ("name", "text", True, "'default'::text"),
    ],
    "river_migration": [
        ("line", "text", True, None),
        ("version", "bigint", True, None),
        ("created_at", "timestamp with time zone", True, "now()"),
    ],
    "river_notification": [
        ("id", "bigint", True, "nextval('intervaljob.river_notification_id_seq'::regclass)"),
        ("created_at", "timestamp with time zone", True, "now()"),
        ("payload", "text", True, None),
        ("topic", "text", True, None),
    ],
}

CHECKS = {
    "river_job.finalized_or_finalized_at_null",
    "river_job.kind_length",
    "river_job.max_attempts_is_positive",
    "river_job.priority_in_range",
    "river_job.queue_length",
    "river_leader.leader_id_length",
    "river_leader.name_length",
    "river_migration.line_length",
    "river_migration.version_gte_1",
    "river_notification.topic_length",
}

INDEXES = {
    "river_job_pkey": "UNIQUE river_job USING btree (id)",
    "river_job_kind": "river_job USING btree (kind)",
    "river_job_state_and_finalized_at_index": (
        "river_job USING btree (state, finalized_at) WHERE (finalized_at IS NOT NULL)"
    ),
    "river_job_prioritized_fetching_index": ("river_job USING btree (state, queue, priority, scheduled_at, id)"),
    "river_job_args_index": "river_job USING gin (args)",
    "river_job_metadata_index": "river_job USING gin (metadata)",
    "river_job_unique_idx": (
        "UNIQUE river_job USING btree (unique_key) WHERE ((unique_key IS NOT NULL) AND (unique_states IS NOT NULL)"
        " AND intervaljob.river_job_state_in_bitmask(unique_states, state))"
    ),
    "river_queue_pkey": "UNIQUE river_queue USING btree (name)",
    "river_leader_pkey": "UNIQUE river_leader USING btree (name)",
    "river_migration_pkey": "UNIQUE river_migration USING btree (line, version)",
    "river_notification_pkey": "UNIQUE river_notification USING btree (id)",
    "river_notification_created_at_idx": "river_notification USING btree (created_at)",
    "river_notification_topic_id_idx": "river_notification USING btree (topic, id)",
}


async def test_its_columns_stand_in_its_order_with_its_types_and_defaults(execute: Execute) -> None:
    rows = await execute(
        """
        SELECT class.relname, attname, format_type(atttypid, atttypmod) AS type, attnotnull,
            pg_get_expr(adbin, adrelid) AS value
        FROM pg_attribute
        JOIN pg_class AS class ON class.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'r' AND relname LIKE 'river%' AND attnum > 0
        ORDER BY relname, attnum
        """
    )
    found: dict[str, list[tuple[object, ...]]] = {}
    for row in rows:
        table = found.setdefault(row["relname"], [])
        table.append((row["attname"], row["type"], row["attnotnull"], row["value"]))
    assert found == COLUMNS


async def test_its_states_are_in_its_order(execute: Execute) -> None:
    rows = await execute(
        "SELECT enumlabel FROM pg_enum WHERE enumtypid = '{schema}.river_job_state'::regtype ORDER BY enumsortorder"
    )
    assert [row["enumlabel"] for row in rows] == STATES


async def test_its_indexes_are_defined_as_it_defines_them(execute: Execute) -> None:
    rows = await execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = '{schema}' AND tablename LIKE 'river%'"
    )
    found = {}
    for row in rows:
        start, _, definition = row["indexdef"].partition(" ON intervaljob.")
        found[row["indexname"]] = ("UNIQUE " if "UNIQUE" in start else "") + definition
    assert found == INDEXES


async def test_its_checks_have_its_names(execute: Execute) -> None:
    rows = await execute(
        """
        SELECT class.relname || '.' || conname AS name
        FROM pg_constraint JOIN pg_class AS class ON class.oid = conrelid
        WHERE connamespace = '{schema}'::regnamespace AND contype = 'c' AND relname LIKE 'river%'
        """
    )
    assert {row["name"] for row in rows} == CHECKS


@pytest.mark.parametrize(
    ("check", "columns", "values"),
    [
        ("finalized_or_finalized_at_null", "state, finalized_at", "'completed', NULL"),
        ("finalized_or_finalized_at_null", "state, finalized_at", "'cancelled', NULL"),
        ("finalized_or_finalized_at_null", "state, finalized_at", "'discarded', NULL"),
        ("finalized_or_finalized_at_null", "state, finalized_at", "'available', now()"),
        ("finalized_or_finalized_at_null", "state, finalized_at", "'running', now()"),
        ("max_attempts_is_positive", "max_attempts", "0"),
        ("priority_in_range", "priority", "0"),
        ("priority_in_range", "priority", "5"),
        ("queue_length", "queue", "''"),
        ("queue_length", "queue", "repeat('q', 128)"),
    ],
)
async def test_a_queue_job_that_it_refuses_is_refused(execute: Execute, check: str, columns: str, values: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match=check):
        await execute(f"INSERT INTO {{schema}}.river_job (kind, args, {columns}) VALUES ('k', '{{}}', {values})")


async def test_its_bitmask_function_reads_the_bits_that_it_reads(execute: Execute) -> None:
    bits = ["scheduled", "running", "retryable", "pending", "discarded", "completed", "cancelled", "available"]
    rows = await execute(
        """
        SELECT state::text, array_agg(bit ORDER BY bit) AS bits
        FROM unnest(enum_range(NULL::{schema}.river_job_state)) AS state, generate_series(0, 7) AS bit
        WHERE {schema}.river_job_state_in_bitmask(set_bit(B'00000000', bit, 1), state)
        GROUP BY state
        """
    )
    assert {row["state"]: row["bits"] for row in rows} == {state: [bit] for bit, state in enumerate(bits)}
    (function,) = await execute(
        """
        SELECT provolatile, pg_get_function_identity_arguments(oid) AS arguments, prorettype::regtype::text AS result
        FROM pg_proc WHERE proname = 'river_job_state_in_bitmask'
        """
    )
    assert function == {
        "provolatile": "i",
        "arguments": "bitmask bit, state intervaljob.river_job_state",
        "result": "boolean",
    }


async def test_its_leader_is_unlogged_and_its_sequences_are_owned(execute: Execute) -> None:
    rows = await execute(
        """
        SELECT relname, relkind, relpersistence
        FROM pg_class
        WHERE relnamespace = '{schema}'::regnamespace AND relname LIKE 'river%' AND relkind IN ('r', 'S')
        """
    )
    assert {row["relname"]: (row["relkind"], row["relpersistence"]) for row in rows} == {
        "river_job": ("r", "p"),
        "river_job_id_seq": ("S", "p"),
        "river_leader": ("r", "u"),
        "river_migration": ("r", "p"),
        "river_notification": ("r", "p"),
        "river_notification_id_seq": ("S", "p"),
        "river_queue": ("r", "p"),
    }
    (owner,) = await execute("SELECT pg_get_serial_sequence('{schema}.river_job', 'id') AS sequence")
    assert owner["sequence"] == "intervaljob.river_job_id_seq"


async def test_its_history_says_that_it_is_at_version_8(execute: Execute) -> None:
    rows = await execute("SELECT line, version FROM {schema}.river_migration ORDER BY version")
    assert rows == [{"line": "main", "version": version} for version in range(1, 9)]
