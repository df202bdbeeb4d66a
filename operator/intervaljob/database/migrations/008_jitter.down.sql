-- What is due next keeps its moment; what comes after it is due when the schedule says.
ALTER TABLE {schema}.jobs DROP COLUMN jitter_seconds;
