DROP FUNCTION {schema}.occurrence_of(jsonb, timestamptz);
