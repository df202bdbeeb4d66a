-- The time that a queue job stands for: its scheduled_at, unless its metadata say another one, in seconds since 1970.
-- Anybody may write metadata, so a cast that can fail (1e-400 to float8 does, too) would let one row hold up the whole
-- queue. Times that a client's calendar does not have are moved to its ends.
CREATE FUNCTION {schema}.occurrence_of(metadata jsonb, scheduled_at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN greatest('0001-01-02 00:00Z', least('9999-01-01 00:00Z', CASE
    WHEN jsonb_typeof(metadata -> 'intervaljob:occurrence') = 'number'
        THEN to_timestamp(round(
            greatest(-62135596800, least(253370764800, (metadata ->> 'intervaljob:occurrence')::numeric)), 6
        )::float8)
    ELSE scheduled_at
END));
