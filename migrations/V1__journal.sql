-- What is owed, and what happened.
--
-- The seller's transaction writes one row to taskbell.outbox for every change of a task's state
-- (by the triggers of V2). The daemon moves it to taskbell.transition: at once where nobody is
-- owed a webhook, after the webhook was delivered otherwise. So the hot table holds only what
-- somebody still has to act on, and the history can be dropped a day at a time.

CREATE SCHEMA IF NOT EXISTS taskbell;
COMMENT ON SCHEMA taskbell IS 'Taskbell: webhooks owed and task latency. See ARCHITECTURE.md.';

CREATE TABLE taskbell.schema_version (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- The task tables that carry our triggers, and which of their columns means what.
CREATE TABLE taskbell.watched_table (
    watch_id       smallint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    relation       regclass NOT NULL UNIQUE,
    profile        text NOT NULL CHECK (profile IN ('adcp-python', 'adcp-typescript', 'custom', 'adcp-python-outbox')),
    id_column      name NOT NULL,
    state_column   name NOT NULL,
    type_column    name NOT NULL,
    account_column name,
    result_column  name,
    error_column   name,
    context_column name,
    progress_column name,
    created_column name,
    doorbell       boolean NOT NULL DEFAULT true,
    watched_at     timestamptz NOT NULL DEFAULT now()
);

-- Task types that may have a webhook: receivers refuse others. Operators may add rows.
CREATE TABLE taskbell.task_type (
    name text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,127}$')
);
INSERT INTO taskbell.task_type (name) VALUES
    ('accept_proposal'), ('acquire_rights'), ('activate_signal'), ('build_creative'), ('buy_products'),
    ('control_media_buy'), ('create_media_buy'), ('create_property_list'), ('decline_proposals'),
    ('delete_property_list'), ('get_account_financials'), ('get_brand_identity'),
    ('get_creative_delivery'), ('get_creative_features'), ('get_principal'), ('get_products'),
    ('get_property_list'), ('get_rights'), ('get_signals'), ('list_property_lists'), ('log_event'),
    ('media_buy_delivery'), ('preview_creative'), ('refine_proposals'), ('request_proposals'),
    ('search_brands'), ('sync_accounts'), ('sync_agent_notification_configs'), ('sync_audiences'),
    ('sync_catalogs'), ('sync_creatives'), ('sync_event_sources'), ('sync_principal'),
    ('sync_reporting_receipts'), ('sync_reporting_status'), ('update_media_buy'),
    ('update_property_list'), ('update_rights');

-- A buyer's push_notification_config for one task. Holds secrets: never granted to anybody.
-- `token` and `credentials` are plain only until a daemon with a sealing key sees them; `sealed`
-- then holds both, under AES-256-GCM, bound to the other columns.
-- `states`: the open states that the buyer hears of too, beside the ends of the task.
-- `newest_sent`: the newest row of an open state that went out; older ones are old news since.
CREATE TABLE taskbell.registration (
    watch_id      smallint NOT NULL,
    task_id       text COLLATE "C" NOT NULL,
    account_id    text COLLATE "C",
    task_type     text NOT NULL,
    url           text NOT NULL,
    operation_id  text NOT NULL,
    scheme        text CHECK (scheme IN ('Bearer', 'HMAC-SHA256')),
    token         text,
    credentials   text,
    sealed        bytea,
    sealed_nonce  bytea CHECK (octet_length(sealed_nonce) = 12),
    sealed_with   text COLLATE "C",
    signing_scope text COLLATE "C",
    states        text[] NOT NULL DEFAULT '{}',
    lane          text COLLATE "C" NOT NULL,
    newest_sent   bigint,
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- In this order: an index that begins with the table's number could be read whole for a join by that number.
    PRIMARY KEY (task_id, watch_id),
    CONSTRAINT sealed_as_a_whole CHECK ((sealed IS NULL) = (sealed_nonce IS NULL)
                                        AND (sealed IS NULL) = (sealed_with IS NULL)),
    CONSTRAINT sealed_or_plain CHECK (sealed IS NULL OR (token IS NULL AND credentials IS NULL)),
    CONSTRAINT scheme_and_credentials CHECK (sealed IS NOT NULL OR (scheme IS NULL) = (credentials IS NULL)),
    CONSTRAINT scope_or_scheme CHECK (signing_scope IS NULL OR scheme IS NULL)
) WITH (vacuum_truncate = off);
-- A seller's session plans the trigger's question once. Were the table small at that time, as after a quiet night, it would
-- read all of it for each change from then on, until autovacuum has counted what came since. So its file has some pages
-- from the start, and keeps them (but for a restore from a dump, VACUUM FULL and TRUNCATE).
INSERT INTO taskbell.registration (watch_id, task_id, task_type, url, operation_id, lane)
SELECT 0, n, '', repeat(' ', 100), '', '' FROM generate_series(1, 1000) AS n;
DELETE FROM taskbell.registration;
CREATE INDEX registration_plain ON taskbell.registration (watch_id, task_id)
    WHERE token IS NOT NULL OR credentials IS NOT NULL;

-- The hot table: a row per state change that somebody must act on.
-- `lane` null: nobody is owed a webhook, the row is only a transition to be observed.
-- `observed`: its transition was handed out to be measured, which happens once, whatever becomes
-- of the webhook.
-- `available_at`: the earliest next claim; null of a dead letter. A claim does not touch it, nor any other
-- column that an index has: so a claim stays on its page (a HOT update), adds nothing to the
-- indexes and hardly anything to the log. Half of each page is left free for that.
-- It has no CHECK: PostgreSQL reads each of them anew for every statement, and a seller's insert is
-- one. The rules (tests/it/support/rules.sql) are constraints in every test:
-- `state` is pending, in_flight, expired or invalid; in flight is what has a lease; dead letters
-- (expired, invalid) are never due and have a reason; lane and key, and the first attempt and the
-- horizon, are both there or both not.
CREATE TABLE taskbell.outbox (
    id               bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    watch_id         smallint NOT NULL,
    task_id          text COLLATE "C" NOT NULL,
    account_id       text COLLATE "C" NOT NULL DEFAULT '',
    task_type        text NOT NULL,
    from_state       text,
    to_state         text NOT NULL,
    task_created_at  timestamptz,
    occurred_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    lane             text COLLATE "C",
    idempotency_key  uuid,
    document         jsonb,
    context          jsonb,
    state            text NOT NULL DEFAULT 'pending',
    attempt_count    integer NOT NULL DEFAULT 0,
    observed         boolean NOT NULL DEFAULT false,
    available_at     timestamptz DEFAULT clock_timestamp(),
    lease_token      uuid,
    lease_expires_at timestamptz,
    first_attempt_at timestamptz,
    retry_until      timestamptz,
    last_status      integer,
    last_reason      text
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0);

-- Each row stands in the primary key and in one of these two, so a seller's insert pays for two.
-- The first is what claims walk: from lane to lane, and within one from row to row.
CREATE INDEX outbox_lane ON taskbell.outbox (lane, account_id, available_at, id)
    WHERE lane IS NOT NULL AND available_at IS NOT NULL;
CREATE INDEX outbox_unowed ON taskbell.outbox (id) WHERE lane IS NULL;

-- How many changes have been recorded, those of transactions that were rolled back included.
CREATE FUNCTION taskbell.recorded() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM taskbell.outbox_id_seq
$$;

-- What the bell says of a webhook owed at a lane to an account: a number, because everybody may listen.
-- Without a search_path of its own, so that it is put in place of the call.
CREATE FUNCTION taskbell.bell_of(lane text, account_id text) RETURNS text
    LANGUAGE sql IMMUTABLE AS $$
    SELECT pg_catalog.hashtextextended(lane OPERATOR(pg_catalog.||) ' ' OPERATOR(pg_catalog.||) account_id, 0)::pg_catalog.text
$$;

-- The health of a lane, for each account there: buyers share receivers, and one buyer's revoked
-- credential must not close them all. A row only where something failed.
-- `closed_until`: nothing is claimed before; then one row probes. `recovered`: successes since it
-- was closed; the more there are, the more may be in flight at once.
CREATE TABLE taskbell.circuit (
    lane          text COLLATE "C" NOT NULL,
    account_id    text COLLATE "C" NOT NULL,
    failures      integer NOT NULL,
    pauses        integer NOT NULL DEFAULT 0,
    closed_until  timestamptz,
    probing       boolean NOT NULL DEFAULT false,
    recovered     integer,
    failing_since timestamptz NOT NULL DEFAULT now(),
    last_reason   text NOT NULL,
    PRIMARY KEY (lane, account_id),
    CONSTRAINT closed_or_recovering CHECK (closed_until IS NULL OR recovered IS NULL)
);

-- Counts failures, one element a failed attempt. After `threshold` of them in a row, after a probe
-- that failed and after a failure on the way back, the circuit is closed: for `pause` at first,
-- twice as long each time up to `max_pause`, a quarter more or less.
CREATE FUNCTION taskbell.trip_circuits(lanes text[], accounts text[], reasons text[], threshold integer,
                                       pause interval, max_pause interval) RETURNS void
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO taskbell.circuit AS c (lane, account_id, failures, last_reason, pauses, closed_until)
    SELECT f.lane, f.account_id, count(*), coalesce(max(f.reason), 'internal'), (count(*) >= threshold)::integer,
           CASE WHEN count(*) >= threshold THEN now() + pause * (0.75 + random() / 2) END
    FROM unnest(lanes, accounts, reasons) AS f(lane, account_id, reason)
    GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (lane, account_id) DO UPDATE SET
        failures = c.failures + excluded.failures,
        last_reason = excluded.last_reason,
        recovered = NULL,
        probing = false,
        pauses = c.pauses + CASE
            WHEN c.probing OR c.recovered IS NOT NULL
                 OR (c.closed_until IS NULL AND c.failures + excluded.failures >= threshold) THEN 1 ELSE 0 END,
        closed_until = CASE
            WHEN c.probing OR c.recovered IS NOT NULL
                 OR (c.closed_until IS NULL AND c.failures + excluded.failures >= threshold)
            THEN now() + least(pause * power(2, least(c.pauses, 20)), max_pause) * (0.75 + random() / 2)
            ELSE c.closed_until END
$$;

-- Counts successes: forgets failures that closed nothing, and opens what was closed step by step.
-- After a probe's success the destination is well again, and accounts that were closed for its sake,
-- not for their own, probe soon too, each at a moment of its own. One that fails once more is left
-- alone as long as before, not twice as long: it was asked too early.
CREATE FUNCTION taskbell.heal_circuits(lanes text[], accounts text[]) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    soon   CONSTANT interval := '2 seconds';
    probed text[];
BEGIN
    WITH ok AS (
        SELECT c.lane, c.account_id, c.probing, count(*) AS n
        FROM unnest(lanes, accounts) AS o(lane, account_id) JOIN taskbell.circuit c USING (lane, account_id)
        GROUP BY 1, 2, 3 ORDER BY 1, 2
    ), well AS (
        DELETE FROM taskbell.circuit c USING ok
        WHERE c.lane = ok.lane AND c.account_id = ok.account_id
          AND ((c.closed_until IS NULL AND c.recovered IS NULL) OR coalesce(c.recovered, 0) + ok.n >= 32)
    ), better AS (
        UPDATE taskbell.circuit c
        SET failures = 0, closed_until = NULL, probing = false, recovered = coalesce(c.recovered, 0) + ok.n
        FROM ok
        WHERE c.lane = ok.lane AND c.account_id = ok.account_id
          AND NOT ((c.closed_until IS NULL AND c.recovered IS NULL) OR coalesce(c.recovered, 0) + ok.n >= 32)
    )
    SELECT array_agg(DISTINCT lane) INTO probed FROM ok WHERE probing;
    IF probed IS NOT NULL THEN
        -- One that is locked is being settled or probed.
        WITH sibling AS (
            SELECT c.lane, c.account_id FROM taskbell.circuit c
            WHERE c.lane = ANY (probed) AND c.closed_until > now() + soon AND NOT c.probing
              AND c.last_reason IN ('answer_refused', 'connect', 'dns', 'reset', 'response_broken', 'server_error',
                                    'throttled', 'timeout', 'tls')
            FOR UPDATE SKIP LOCKED
        )
        UPDATE taskbell.circuit c
        SET closed_until = now() + random() * soon, pauses = greatest(c.pauses - 1, 0)
        FROM sibling s WHERE c.lane = s.lane AND c.account_id = s.account_id;
    END IF;
END $$;

-- Open tasks past the limit of their type that a log line was written for.
CREATE TABLE taskbell.overdue (
    watch_id   smallint NOT NULL,
    task_id    text COLLATE "C" NOT NULL,
    noticed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (watch_id, task_id)
);

-- The journal: every state change, with the database's clock; for a delivered webhook, how.
CREATE TABLE taskbell.transition (
    outbox_id        bigint NOT NULL,
    watch_id         smallint NOT NULL,
    task_id          text COLLATE "C" NOT NULL,
    account_id       text COLLATE "C",
    task_type        text NOT NULL,
    from_state       text,
    to_state         text NOT NULL,
    task_created_at  timestamptz,
    occurred_at      timestamptz NOT NULL,
    settled_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    delivery         text CHECK (delivery IN ('delivered', 'superseded', 'cancelled')),
    lane             text,
    url              text,
    operation_id     text,
    idempotency_key  uuid,
    attempt_count    integer,
    first_attempt_at timestamptz,
    last_status      integer,
    last_reason      text
) PARTITION BY RANGE (settled_at);
CREATE INDEX transition_task ON taskbell.transition (task_id, occurred_at);
COMMENT ON COLUMN taskbell.transition.url IS 'As taskbell.shown_url gives it: without query, fragment and tokens.';

-- Every attempt, with closed words for what happened.
-- `source`: whose outbox the row stands in; `native` is ours, `sealed` the Python SDK's.
CREATE TABLE taskbell.attempt (
    source          text NOT NULL DEFAULT 'native' CHECK (source IN ('native', 'sealed')),
    outbox_id       bigint NOT NULL,
    task_id         text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C" NOT NULL,
    attempt         integer NOT NULL,
    started_at      timestamptz NOT NULL,
    duration_ms     integer NOT NULL,
    status          integer,
    reason          text,
    verdict         text NOT NULL CHECK (verdict IN ('acknowledge', 'release', 'dead_letter')),
    body_bytes      integer,
    recorded_at     timestamptz NOT NULL DEFAULT clock_timestamp()
) PARTITION BY RANGE (recorded_at);
CREATE INDEX attempt_delivery ON taskbell.attempt (outbox_id);
-- For whoever looks at the last ones; it grows at its end only.
CREATE INDEX attempt_recent ON taskbell.attempt (recorded_at);

-- Creates the day partitions of both journals from today to some days ahead. A row that finds
-- no partition lands in the default one, so no settle can fail for want of a day.
CREATE FUNCTION taskbell.create_partitions(days_ahead integer DEFAULT 7) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text;
    day    date;
    made   integer := 0;
BEGIN
    FOREACH parent IN ARRAY ARRAY['transition', 'attempt'] LOOP
        FOR day IN SELECT (now() AT TIME ZONE 'UTC')::date + n FROM generate_series(0, days_ahead) AS n LOOP
            CONTINUE WHEN to_regclass(format('taskbell.%I', parent || to_char(day, '_YYYYMMDD'))) IS NOT NULL;
            EXECUTE format('CREATE TABLE taskbell.%I PARTITION OF taskbell.%I FOR VALUES FROM (%L) TO (%L)',
                           parent || to_char(day, '_YYYYMMDD'), parent,
                           day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END $$;

-- Moves rows that found no partition into those of their days, which it creates. Says how many.
CREATE FUNCTION taskbell.move_to_days() RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text;
    stamp  name;
    day    date;
    n      bigint;
    moved  bigint := 0;
BEGIN
    FOR parent, stamp IN
        SELECT * FROM (VALUES ('transition', 'settled_at'), ('attempt', 'recorded_at')) AS t
    LOOP
        EXECUTE format('LOCK TABLE taskbell.%I', parent || '_default');
        EXECUTE format('CREATE TEMP TABLE taskbell_astray ON COMMIT DROP AS TABLE taskbell.%I', parent || '_default');
        EXECUTE format('TRUNCATE taskbell.%I', parent || '_default');
        FOR day IN EXECUTE format('SELECT DISTINCT (%I AT TIME ZONE ''UTC'')::date FROM pg_temp.taskbell_astray', stamp) LOOP
            EXECUTE format('CREATE TABLE IF NOT EXISTS taskbell.%I PARTITION OF taskbell.%I FOR VALUES FROM (%L) TO (%L)',
                           parent || to_char(day, '_YYYYMMDD'), parent,
                           day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
        END LOOP;
        EXECUTE format('INSERT INTO taskbell.%I TABLE pg_temp.taskbell_astray', parent);
        GET DIAGNOSTICS n = ROW_COUNT;
        moved := moved + n;
        DROP TABLE pg_temp.taskbell_astray;
    END LOOP;
    RETURN moved;
END $$;

-- Drops the day partitions that ended before `keep` ago. Says how many.
CREATE FUNCTION taskbell.drop_partitions(keep interval) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    partition record;
    dropped   integer := 0;
BEGIN
    FOR partition IN
        SELECT c.relname
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('taskbell.transition'::regclass, 'taskbell.attempt'::regclass)
          AND c.relname ~ '_[0-9]{8}$'
          AND (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' <= now() - keep
    LOOP
        EXECUTE format('DROP TABLE taskbell.%I', partition.relname);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;

CREATE TABLE taskbell.transition_default PARTITION OF taskbell.transition DEFAULT;
CREATE TABLE taskbell.attempt_default PARTITION OF taskbell.attempt DEFAULT;
SELECT taskbell.create_partitions();

REVOKE ALL ON ALL TABLES IN SCHEMA taskbell FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION
    taskbell.recorded(), taskbell.create_partitions(integer), taskbell.move_to_days(), taskbell.drop_partitions(interval), taskbell.heal_circuits(text[], text[]),
    taskbell.trip_circuits(text[], text[], text[], integer, interval, interval)
FROM PUBLIC;

INSERT INTO taskbell.schema_version (version, name) VALUES (1, 'journal');
