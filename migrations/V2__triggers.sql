-- The triggers that record every state change in the seller's own transaction, and the doorbell.
--
-- watch() writes one trigger function per watched table, with the column names in place: static
-- SQL whose plan is cached is the cheapest thing a seller's commit can carry.

-- Rings the daemon, unless one is awake; it looks everywhere. A daemon that is awake holds (or waits for) the
-- exclusive side of this lock and looks at the table by itself; notifying it would make every
-- commit of the cluster wait for this one. The number is 'taskbell' in ASCII.
CREATE FUNCTION taskbell.ring() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_try_advisory_xact_lock_shared(8386110886190083180) THEN
        PERFORM pg_notify('taskbell', '');
    END IF;
END $$;

-- For tables of others whose rows we deliver, and that have no trigger of ours but this one.
CREATE FUNCTION taskbell.ring_for_rows() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM taskbell.ring();
    RETURN NULL;
END $$;

-- A terminal task is never changed, whoever tries.
CREATE FUNCTION taskbell.refuse_terminal_change(task_table regclass) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation pg_class;
BEGIN
    SELECT c.* INTO relation FROM pg_class c WHERE c.oid = task_table;
    RAISE EXCEPTION 'a task of % that has ended cannot be changed', task_table
        USING ERRCODE = 'check_violation', TABLE = relation.relname, SCHEMA = relation.relnamespace::regnamespace::text,
              CONSTRAINT = 'taskbell_terminal_is_final',
              HINT = 'The buyer was told, or is about to be. Issue a new task instead; updates that may race '
                     'with the end should say WHERE state NOT IN (''completed'', ''failed'').';
END $$;

-- The condition that a task of a watched table is open, as SQL: what the index of open tasks has for
-- its predicate and what gauges ask. An enum is compared with those of its labels that are ours.
CREATE FUNCTION taskbell.open_condition(task_table regclass, state_column name) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(format('%I IN (%s)', state_column, string_agg(quote_literal(s.state), ', ')), 'false')
    FROM pg_attribute a
    JOIN pg_type t ON t.oid = a.atttypid
    CROSS JOIN unnest(ARRAY['submitted', 'working', 'input-required', 'auth-required']) AS s(state)
    WHERE a.attrelid = task_table AND a.attname = state_column
      AND (t.typtype <> 'e' OR EXISTS (SELECT FROM pg_enum e WHERE e.enumtypid = t.oid AND e.enumlabel = s.state))
$$;

-- Puts our triggers on a task table. Running it again brings them up to date; it takes the
-- table's lock (SHARE ROW EXCLUSIVE, for the moment of creating a trigger) only if one is missing.
CREATE FUNCTION taskbell.watch(
    task_table     regclass,
    profile        text DEFAULT 'adcp-python',
    id_column      name DEFAULT NULL,
    state_column   name DEFAULT NULL,
    type_column    name DEFAULT NULL,
    account_column name DEFAULT NULL,
    result_column  name DEFAULT NULL,
    error_column   name DEFAULT NULL,
    context_column name DEFAULT NULL,
    progress_column name DEFAULT NULL,
    created_column name DEFAULT NULL,
    doorbell       boolean DEFAULT true
) RETURNS smallint
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    watched      taskbell.watched_table;
    missing      text;
    created_type text;
    created      text := 'NULL::pg_catalog.timestamptz';
    account      text;
    recorder     regproc;
    -- The states that end a task (AdCP, task-status.json).
    terminal     CONSTANT text := '''{completed,failed,canceled,rejected}''';
    unchanged    CONSTANT text := 'coalesce(old.%1$I::pg_catalog.%2$I OPERATOR(pg_catalog.=) new.%1$I::pg_catalog.%2$I, '
                                  'old.%1$I IS NULL AND new.%1$I IS NULL)';
BEGIN
    IF profile = 'adcp-python' THEN
        id_column := coalesce(id_column, 'task_id');      state_column := coalesce(state_column, 'state');
        type_column := coalesce(type_column, 'task_type'); account_column := coalesce(account_column, 'account_id');
        result_column := coalesce(result_column, 'result'); error_column := coalesce(error_column, 'error');
        progress_column := coalesce(progress_column, 'progress');
        created_column := coalesce(created_column, 'created_at');
        -- Older tables lack it until the SDK's own create_schema has run.
        IF context_column IS NULL AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = task_table
                AND attname = 'request_context' AND NOT attisdropped) THEN
            context_column := 'request_context';
        END IF;
    ELSIF profile = 'adcp-typescript' THEN
        id_column := coalesce(id_column, 'task_id');      state_column := coalesce(state_column, 'status');
        type_column := coalesce(type_column, 'tool');      account_column := coalesce(account_column, 'account_id');
        result_column := coalesce(result_column, 'result'); error_column := coalesce(error_column, 'error');
        progress_column := coalesce(progress_column, 'progress');
        created_column := coalesce(created_column, 'created_at');
    ELSIF profile = 'custom' THEN
        IF id_column IS NULL OR state_column IS NULL OR type_column IS NULL THEN
            RAISE EXCEPTION 'taskbell.watch: profile custom needs id_column, state_column and type_column'
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    ELSIF profile = 'adcp-python-outbox' THEN
        -- No tasks: webhooks that the SDK owes. Only the bell is ours.
        id_column := 'id'; state_column := 'state'; type_column := 'task_type'; account_column := 'account_id';
    ELSE
        RAISE EXCEPTION 'taskbell.watch: unknown profile'
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'One of adcp-python, adcp-typescript, custom, adcp-python-outbox.';
    END IF;
    SELECT string_agg(quote_ident(c), ', ') INTO missing
    FROM unnest(ARRAY[id_column, state_column, type_column, account_column, result_column, error_column,
                      context_column, progress_column, created_column]) AS c
    WHERE c IS NOT NULL
      AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = task_table AND a.attname = c
                      AND a.attnum > 0 AND NOT a.attisdropped);
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'taskbell.watch: % has no column %', task_table, missing
            USING ERRCODE = 'undefined_column', HINT = 'Name the columns: taskbell.watch(table, id_column => …).';
    END IF;

    INSERT INTO taskbell.watched_table AS w (relation, profile, id_column, state_column, type_column, account_column,
            result_column, error_column, context_column, progress_column, created_column, doorbell)
    VALUES (task_table, profile, id_column, state_column, type_column, account_column, result_column,
            error_column, context_column, progress_column, created_column, doorbell)
    ON CONFLICT (relation) DO UPDATE SET (profile, id_column, state_column, type_column, account_column,
            result_column, error_column, context_column, progress_column, created_column, doorbell) = (excluded.profile,
            excluded.id_column, excluded.state_column, excluded.type_column, excluded.account_column,
            excluded.result_column, excluded.error_column, excluded.context_column, excluded.progress_column, excluded.created_column,
            excluded.doorbell)
    RETURNING w.* INTO watched;

    IF profile = 'adcp-python-outbox' THEN
        IF NOT doorbell THEN
            EXECUTE format('DROP TRIGGER IF EXISTS taskbell_doorbell ON %s', task_table);
        ELSIF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = task_table AND tgname = 'taskbell_doorbell'
                          AND tgenabled <> 'D') THEN
            EXECUTE format('CREATE OR REPLACE TRIGGER taskbell_doorbell AFTER INSERT ON %s
                            FOR EACH STATEMENT EXECUTE FUNCTION taskbell.ring_for_rows()', task_table);
        END IF;
        RETURN watched.watch_id;
    END IF;

    IF created_column IS NOT NULL THEN
        SELECT format_type(atttypid, NULL) INTO created_type
        FROM pg_attribute WHERE attrelid = task_table AND attname = created_column;
        created := CASE
            WHEN created_type IN ('timestamp with time zone', 'timestamp without time zone', 'date')
                THEN format('new.%I::pg_catalog.timestamptz', created_column)
            -- Epoch seconds from some application's clock: a value that is no time must not
            -- fail the seller's transaction.
            ELSE format('CASE WHEN new.%1$I OPERATOR(pg_catalog.>=) 0 AND new.%1$I OPERATOR(pg_catalog.<=) 253402300799 '
                        'THEN pg_catalog.to_timestamp(new.%1$I) END', created_column)
        END;
    END IF;

    account := coalesce('coalesce(new.' || quote_ident(account_column) || '::pg_catalog.text, '''')', '''''');
    -- Conditions stand in the function and not in a WHEN of the trigger: PostgreSQL reads a WHEN
    -- anew for each statement, which costs a seller's commit more than the call. Nor has the function a
    -- search_path of its own, to be set and reset with each call: what it names it names with the schema,
    -- operators too, and it uses nothing that means an operator without naming it (IN, BETWEEN, IS DISTINCT FROM).
    EXECUTE format($body$
        CREATE OR REPLACE FUNCTION taskbell.record_%1$s() RETURNS trigger
            LANGUAGE plpgsql SECURITY DEFINER AS $record$
        DECLARE
            lane  pg_catalog.text;
            ended pg_catalog.bool := new.%3$I::pg_catalog.text OPERATOR(pg_catalog.=) ANY (%11$s);
        BEGIN
            IF tg_op OPERATOR(pg_catalog.=) 'UPDATE' THEN
                IF old.%3$I::pg_catalog.text OPERATOR(pg_catalog.=) ANY (%11$s) THEN
                    IF NOT (%13$s) THEN
                        PERFORM taskbell.refuse_terminal_change(tg_relid);
                    END IF;
                    RETURN NULL;
                ELSIF %14$s THEN
                    RETURN NULL;
                END IF;
                SELECT r.lane INTO lane FROM taskbell.registration r
                WHERE r.watch_id OPERATOR(pg_catalog.=) %1$s
                  AND r.task_id OPERATOR(pg_catalog.=) new.%2$I::pg_catalog.text
                  AND (ended OR new.%3$I::pg_catalog.text OPERATOR(pg_catalog.=) ANY (r.states));
            END IF;
            IF lane IS NULL THEN
                INSERT INTO taskbell.outbox (watch_id, task_id, account_id, task_type, from_state, to_state,
                                             task_created_at)
                VALUES (%1$s, new.%2$I, %5$s, new.%4$I, old.%3$I, new.%3$I, %6$s);
            ELSE
                INSERT INTO taskbell.outbox (watch_id, task_id, account_id, task_type, from_state, to_state,
                                             task_created_at, lane, idempotency_key, document, context)
                VALUES (%1$s, new.%2$I, %5$s, new.%4$I, old.%3$I, new.%3$I, %6$s, lane, pg_catalog.gen_random_uuid(),
                        CASE WHEN new.%3$I::pg_catalog.text OPERATOR(pg_catalog.=) 'completed' THEN %7$s
                             WHEN new.%3$I::pg_catalog.text OPERATOR(pg_catalog.=) 'failed' THEN %8$s
                             WHEN ended THEN coalesce(%7$s, %8$s)
                             ELSE %12$s END, %9$s);
            END IF;
            %10$s
            RETURN NULL;
        END $record$
        $body$,
        watched.watch_id, id_column, state_column, type_column,
        account, created,
        coalesce('new.' || quote_ident(result_column), 'NULL') || '::pg_catalog.jsonb',
        coalesce('new.' || quote_ident(error_column), 'NULL') || '::pg_catalog.jsonb',
        coalesce('new.' || quote_ident(context_column), 'NULL') || '::pg_catalog.jsonb',
        CASE WHEN doorbell THEN
            -- The body of taskbell.ring(), in place: a call would cost as much as the lock.
            format('IF pg_catalog.pg_try_advisory_xact_lock_shared(8386110886190083180) THEN '
                   'PERFORM pg_catalog.pg_notify(''taskbell'', coalesce(taskbell.bell_of(lane, %s), ''change'')); END IF;', account)
        END, terminal, coalesce('new.' || quote_ident(progress_column), 'NULL') || '::pg_catalog.jsonb',
        format(unchanged, state_column, 'text')
        || (SELECT coalesce(string_agg(' AND ' || format(unchanged, c, CASE WHEN a.atttypid IN ('json'::regtype, 'jsonb'::regtype)
                                                                           THEN 'jsonb' ELSE 'text' END), ''), '')
            FROM unnest(ARRAY[result_column, error_column]) AS c
            JOIN pg_attribute a ON a.attrelid = task_table AND a.attname = c),
        format(unchanged, state_column, 'text'));
    EXECUTE format('REVOKE EXECUTE ON FUNCTION taskbell.record_%s() FROM PUBLIC', watched.watch_id);
    recorder := format('taskbell.record_%s', watched.watch_id)::regproc;

    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = task_table AND tgname = 'taskbell_record'
                   AND tgfoid = recorder AND tgenabled <> 'D') THEN
        EXECUTE format('CREATE OR REPLACE TRIGGER taskbell_record AFTER INSERT OR UPDATE ON %s
                        FOR EACH ROW EXECUTE FUNCTION %s()', task_table, recorder);
    END IF;
    RETURN watched.watch_id;
END $$;

-- Takes the triggers of a task table away. What is owed stays owed.
CREATE FUNCTION taskbell.unwatch(task_table regclass) RETURNS boolean
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone smallint;
BEGIN
    -- A table that was dropped took its triggers with it.
    IF EXISTS (SELECT FROM pg_class WHERE oid = task_table) THEN
        EXECUTE format('DROP TRIGGER IF EXISTS taskbell_record ON %s', task_table);
        EXECUTE format('DROP TRIGGER IF EXISTS taskbell_doorbell ON %s', task_table);
    END IF;
    DELETE FROM taskbell.watched_table w WHERE w.relation = task_table RETURNING w.watch_id INTO gone;
    IF gone IS NOT NULL THEN
        EXECUTE format('DROP FUNCTION IF EXISTS taskbell.record_%s()', gone);
    END IF;
    RETURN gone IS NOT NULL;
END $$;

-- Creates a task table as the AdCP Python SDK has it, where there is none, and watches it.
CREATE FUNCTION taskbell.create_task_table(table_name text DEFAULT 'decisioning_tasks') RETURNS smallint
    LANGUAGE plpgsql AS $$
BEGIN
    IF table_name !~ '^[a-z_][a-z0-9_]{0,44}$' THEN
        RAISE EXCEPTION 'taskbell.create_task_table: table_name must match ^[a-z_][a-z0-9_]{0,44}$'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF to_regclass(table_name) IS NULL THEN
        EXECUTE format($table$
            CREATE TABLE %I (
                task_id                    text COLLATE "C" PRIMARY KEY,
                account_id                 text COLLATE "C" NOT NULL,
                state                      text NOT NULL DEFAULT 'submitted',
                task_type                  text NOT NULL,
                progress                   jsonb,
                result                     jsonb,
                error                      jsonb,
                request_context            jsonb,
                webhook_registration       bytea,
                webhook_registration_nonce bytea,
                created_at                 double precision NOT NULL,
                updated_at                 double precision NOT NULL
            )$table$, table_name);
        EXECUTE format('CREATE INDEX %I ON %I (account_id)', table_name || '_account_idx', table_name);
    END IF;
    RETURN taskbell.watch(table_name::regclass);
END $$;

REVOKE EXECUTE ON FUNCTION
    taskbell.ring(), taskbell.ring_for_rows(), taskbell.open_condition(regclass, name), taskbell.refuse_terminal_change(regclass), taskbell.create_task_table(text),
    taskbell.watch(regclass, text, name, name, name, name, name, name, name, name, name, boolean),
    taskbell.unwatch(regclass)
FROM PUBLIC;

INSERT INTO taskbell.schema_version (version, name) VALUES (2, 'triggers');
