-- What stands before pg_catalog in this search_path raises an error wherever it is used.
CREATE SCHEMA traps;
CREATE FUNCTION traps.trap() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;

DO $$
DECLARE
    pair    text[];
    symbol  text;
    routine text;
BEGIN
    FOREACH pair SLICE 1 IN ARRAY ARRAY[['text', 'text'], ['smallint', 'integer'], ['bigint', 'integer'],
                                        ['double precision', 'integer'], ['double precision', 'bigint'],
                                        ['double precision', 'double precision'], ['jsonb', 'jsonb']] LOOP
        EXECUTE format('CREATE FUNCTION traps.compare(%s, %s) RETURNS boolean LANGUAGE plpgsql
                        AS ''BEGIN PERFORM traps.trap(); RETURN NULL; END''', pair[1], pair[2]);
        FOREACH symbol IN ARRAY ARRAY['=', '<>', '<', '>', '<=', '>='] LOOP
            EXECUTE format('CREATE OPERATOR traps.%s (FUNCTION = traps.compare, LEFTARG = %s, RIGHTARG = %s)',
                           symbol, pair[1], pair[2]);
        END LOOP;
    END LOOP;
    CREATE FUNCTION traps.join(text, text) RETURNS text LANGUAGE plpgsql
        AS 'BEGIN PERFORM traps.trap(); RETURN NULL; END';
    CREATE OPERATOR traps.|| (FUNCTION = traps.join, LEFTARG = text, RIGHTARG = text);
    FOREACH routine IN ARRAY ARRAY['gen_random_uuid() RETURNS uuid', 'clock_timestamp() RETURNS timestamptz',
            'to_timestamp(double precision) RETURNS timestamptz', 'pg_notify(text, text) RETURNS void',
            'pg_try_advisory_xact_lock_shared(bigint) RETURNS boolean',
            'hashtextextended(text, bigint) RETURNS bigint'] LOOP
        EXECUTE format('CREATE FUNCTION traps.%s LANGUAGE plpgsql AS ''BEGIN PERFORM traps.trap(); END''', routine);
    END LOOP;
END $$;

CREATE DOMAIN traps.text AS pg_catalog.text CHECK (false);
CREATE DOMAIN traps.bool AS pg_catalog.bool CHECK (false);
CREATE DOMAIN traps.jsonb AS pg_catalog.jsonb CHECK (false);
CREATE DOMAIN traps.timestamptz AS pg_catalog.timestamptz CHECK (false);
