DROP TABLE {schema}.tasks;
DROP TABLE {schema}.jobs;
