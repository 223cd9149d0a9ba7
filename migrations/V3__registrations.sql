-- register_webhook: how a seller in any language says whom to ring.
--
-- Called in the transaction that inserts the task, after the INSERT. It refuses what could only
-- fail later, when nobody is there to be told; an error names the member, never its value.
--
-- `states`: open states that the buyer hears of too. `signing_scope`: which key set signs.
-- `sealed…`: from writers that hold a sealing key; `token` and `credentials` are then left out
-- of the config, and whoever sealed them has checked them.

CREATE FUNCTION taskbell.refuse_registration(field text, problem text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'push_notification_config: % %', field, problem
        USING ERRCODE = 'invalid_parameter_value', COLUMN = field,
              HINT = 'Nothing was stored. Refuse the buyer''s request with INVALID_REQUEST on this field.';
END $$;

-- The destination of a URL as a lane: scheme, host and port, lower case, the port always written.
-- Null where there is no host that can be called: of ASCII a name has letters, digits, - . _ only.
CREATE FUNCTION taskbell.lane_of(url text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT p[1] || '://' || rtrim(p[2], '.') || ':' || coalesce(nullif(ltrim(p[3], ':'), ''),
           CASE p[1] WHEN 'https' THEN '443' ELSE '80' END)
    FROM regexp_match(lower(url), '^(https?)://(\[[0-9a-f:.]*:[0-9a-f:.]*\]|(?:[a-z0-9._-]|[^\x01-\x7f])+)(:[0-9]*)?(?:[/?#]|$)') AS p
$$;

CREATE FUNCTION taskbell.register_webhook(
    task_id                  text,
    push_notification_config jsonb,
    task_table               regclass DEFAULT NULL,
    states                   text[] DEFAULT '{}',
    signing_scope            text DEFAULT NULL,
    sealed                   bytea DEFAULT NULL,
    sealed_nonce             bytea DEFAULT NULL,
    sealed_with              text DEFAULT NULL
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    id          ALIAS FOR $1;
    config      ALIAS FOR $2;
    relation    ALIAS FOR $3;
    wishes      ALIAS FOR $4;
    scope       ALIAS FOR $5;
    scheme      text;
    watched     taskbell.watched_table;
    found_in    taskbell.watched_table;
    here        boolean;
    task_state  text;
    kind        text;
    account     text;
    address     text;
    authority   text;
    auth        jsonb;
    granted     boolean;
    denied      boolean := false;
    kept        taskbell.registration;
BEGIN
    IF config IS NULL OR jsonb_typeof(config) <> 'object' THEN
        PERFORM taskbell.refuse_registration('push_notification_config', 'must be a JSON object');
    END IF;

    IF config -> 'url' IS NULL THEN
        PERFORM taskbell.refuse_registration('url', 'is missing');
    ELSIF jsonb_typeof(config -> 'url') <> 'string' THEN
        PERFORM taskbell.refuse_registration('url', 'must be a string');
    END IF;
    address := config ->> 'url';
    IF char_length(address) > 2048 THEN
        PERFORM taskbell.refuse_registration('url', 'is longer than 2048 characters');
    ELSIF address ~ '[\x01-\x20\x7f\\]' THEN
        PERFORM taskbell.refuse_registration('url', 'has a control character, a space or a backslash');
    ELSIF address !~* '^[a-z][a-z0-9+.-]*://' THEN
        PERFORM taskbell.refuse_registration('url', 'must be absolute: https://host/path');
    ELSIF address !~* '^https://'
          AND NOT (address ~* '^http://' AND coalesce(current_setting('taskbell.allow_http', true), '') IN ('on', 'true', '1')) THEN
        PERFORM taskbell.refuse_registration('url', 'must be https');
    END IF;
    authority := substring(address from '^[^:]+://([^/?#]*)');
    IF authority LIKE '%@%' THEN
        PERFORM taskbell.refuse_registration('url', 'must not carry a user name or password');
    ELSIF authority ~ '([.][.]|^[.])' OR taskbell.lane_of(address) IS NULL
          OR coalesce(substring(authority from ':([0-9]+)$')::numeric, 1) NOT BETWEEN 1 AND 65535
          -- A last label of digits makes the whole an address, in one to four parts.
          OR (authority ~ '(^|[.])[0-9]+[.]?(:|$)' AND authority !~ '[^\x01-\x7f]'
              AND lower(authority) !~ '^(0x[0-9a-f]*|[0-9]+)([.](0x[0-9a-f]*|[0-9]+)){0,3}[.]?(:|$)') THEN
        PERFORM taskbell.refuse_registration('url', 'has no host that can be called');
    END IF;

    IF coalesce(jsonb_typeof(config -> 'operation_id'), 'null') = 'null' THEN
        PERFORM taskbell.refuse_registration('operation_id', 'is missing: the webhook must echo it');
    ELSIF jsonb_typeof(config -> 'operation_id') <> 'string' THEN
        PERFORM taskbell.refuse_registration('operation_id', 'must be a string');
    ELSIF config ->> 'operation_id' !~ '^[A-Za-z0-9_.:-]{1,255}$' THEN
        PERFORM taskbell.refuse_registration('operation_id', 'must be 1 to 255 characters of A-Z a-z 0-9 _ . : -');
    END IF;

    IF sealed IS NOT NULL AND (config ? 'token' OR config -> 'authentication' ? 'credentials') THEN
        PERFORM taskbell.refuse_registration('token', 'and authentication.credentials must be left out when they are sealed');
    END IF;
    IF coalesce(jsonb_typeof(config -> 'token'), 'null') NOT IN ('null', 'string') THEN
        PERFORM taskbell.refuse_registration('token', 'must be a string');
    ELSIF char_length(config ->> 'token') NOT BETWEEN 16 AND 4096 THEN
        PERFORM taskbell.refuse_registration('token', 'must have 16 to 4096 characters');
    END IF;

    auth := nullif(config -> 'authentication', 'null');
    IF auth IS NOT NULL THEN
        IF jsonb_typeof(auth) <> 'object' THEN
            PERFORM taskbell.refuse_registration('authentication', 'must be a JSON object');
        ELSIF auth - 'schemes' - 'credentials' <> '{}' THEN
            PERFORM taskbell.refuse_registration('authentication', 'may have only the members schemes and credentials');
        ELSIF sealed IS NULL AND jsonb_typeof(auth -> 'credentials') IS DISTINCT FROM 'string' THEN
            PERFORM taskbell.refuse_registration('authentication.credentials', 'must be a string');
        ELSIF char_length(auth ->> 'credentials') < 32 THEN
            PERFORM taskbell.refuse_registration('authentication.credentials', 'must have at least 32 characters');
        ELSIF auth ->> 'credentials' ~ '[\x01-\x1f\x7f]' THEN
            PERFORM taskbell.refuse_registration('authentication.credentials', 'must not have control characters');
        ELSIF jsonb_typeof(auth -> 'schemes') IS DISTINCT FROM 'array' OR jsonb_array_length(auth -> 'schemes') <> 1
              OR jsonb_typeof(auth -> 'schemes' -> 0) <> 'string' THEN
            PERFORM taskbell.refuse_registration('authentication.schemes', 'must be an array of exactly one scheme');
        ELSIF auth -> 'schemes' ->> 0 NOT IN ('Bearer', 'HMAC-SHA256') THEN
            PERFORM taskbell.refuse_registration('authentication.schemes', 'must be ["Bearer"] or ["HMAC-SHA256"]');
        ELSIF auth -> 'schemes' ->> 0 = 'HMAC-SHA256' AND auth ->> 'credentials' ~ '^(.)\1*$' THEN
            PERFORM taskbell.refuse_registration('authentication.credentials', 'must not be one character over and over');
        END IF;
        scheme := auth -> 'schemes' ->> 0;
        IF scheme <> ALL (string_to_array(replace(coalesce(nullif(current_setting('taskbell.legacy_schemes', true), ''),
                                                           'Bearer,HMAC-SHA256'), ' ', ''), ',')) THEN
            PERFORM taskbell.refuse_registration('authentication.schemes',
                'is switched off here: leave authentication out and verify RFC 9421 signatures');
        END IF;
        -- AdCP wants every registration of this kind in a log, without its contents.
        RAISE LOG 'taskbell: a webhook with deprecated % authentication is registered', scheme;
    END IF;

    IF wishes IS NULL OR NOT wishes <@ ARRAY['submitted', 'working', 'input-required', 'auth-required'] THEN
        PERFORM taskbell.refuse_registration('states', 'may have submitted, working, input-required and auth-required');
    ELSIF scope IS NOT NULL AND (scope = '' OR scope ~ '[\x01-\x1f\x7f]' OR octet_length(scope) > 255) THEN
        PERFORM taskbell.refuse_registration('signing_scope', 'must have 1 to 255 bytes and no control characters');
    ELSIF scope IS NOT NULL AND scheme IS NOT NULL THEN
        PERFORM taskbell.refuse_registration('signing_scope', 'goes with RFC 9421 signatures, not with legacy authentication');
    END IF;

    -- Find the task and hold it: whoever ends it now waits for us, and its trigger then sees
    -- the registration.
    FOR watched IN SELECT w.* FROM taskbell.watched_table w
                   WHERE (relation IS NULL OR w.relation = relation) AND w.profile <> 'adcp-python-outbox' LOOP
        -- Not a right of ours to give: whoever may insert tasks may say whom to ring about them.
        granted := has_table_privilege(session_user, watched.relation, 'INSERT');
        denied := denied OR NOT granted;
        CONTINUE WHEN NOT granted;
        here := NULL;
        BEGIN
            EXECUTE format('SELECT true, %I, %I, %s::text FROM %s WHERE %I = $1::%s FOR NO KEY UPDATE',
                           watched.state_column, watched.type_column,
                           coalesce(quote_ident(watched.account_column), 'NULL'), watched.relation, watched.id_column,
                           (SELECT format_type(a.atttypid, NULL) FROM pg_attribute a
                            WHERE a.attrelid = watched.relation AND a.attname = watched.id_column))
                INTO here, task_state, kind, account USING id;
        EXCEPTION WHEN data_exception THEN
            NULL; -- No id of this table's kind.
        END;
        CONTINUE WHEN here IS NULL;
        IF found_in.watch_id IS NOT NULL THEN
            RAISE EXCEPTION 'taskbell.register_webhook: the task is in % and in %', found_in.relation, watched.relation
                USING ERRCODE = 'ambiguous_parameter', HINT = 'Say which: register_webhook(id, config, ''table'').';
        END IF;
        found_in := watched;
    END LOOP;
    IF found_in.watch_id IS NULL AND denied THEN
        RAISE EXCEPTION 'taskbell.register_webhook: no such task in a table that you may insert into'
            USING ERRCODE = 'insufficient_privilege', HINT = 'It needs the right to INSERT tasks.';
    ELSIF found_in.watch_id IS NULL THEN
        RAISE EXCEPTION 'taskbell.register_webhook: no such task in a watched table'
            USING ERRCODE = 'no_data_found',
                  HINT = 'INSERT the task first, in the same transaction. SELECT * FROM taskbell.watched_table says '
                         'which tables are watched.';
    END IF;
    IF found_in.profile = 'adcp-python' AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = found_in.relation
            AND attname = 'webhook_registration' AND NOT attisdropped) THEN
        EXECUTE format('SELECT webhook_registration IS NOT NULL FROM %s WHERE %I = $1',
                       found_in.relation, found_in.id_column) INTO here USING id;
        IF here THEN
            RAISE EXCEPTION 'taskbell.register_webhook: the AdCP Python SDK has registered a webhook for this task'
                USING ERRCODE = 'unique_violation',
                      HINT = 'The SDK owes it when it ends the task; a second one would ring the buyer twice.';
        END IF;
    END IF;
    IF task_state IN ('completed', 'failed', 'canceled', 'rejected') THEN
        RAISE EXCEPTION 'taskbell.register_webhook: the task is already %', task_state
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'A webhook is owed only for a task that ends after its registration. The first answer '
                         'already carried this result.';
    END IF;
    IF NOT EXISTS (SELECT FROM taskbell.task_type t WHERE t.name = kind) THEN
        RAISE EXCEPTION 'taskbell.register_webhook: tasks of this type cannot have a webhook'
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'task_type',
                  HINT = 'Receivers accept only the task types of the AdCP enum. An operator may add one to '
                         'taskbell.task_type; without a webhook any type may be a task.';
    END IF;
    IF id !~ '^[A-Za-z0-9_.:-]{1,246}$' THEN
        RAISE EXCEPTION 'taskbell.register_webhook: this task_id cannot be part of a notification_id'
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'task_id',
                  HINT = 'A task with a webhook needs an id of 1 to 246 characters of A-Z a-z 0-9 _ . : -';
    END IF;

    INSERT INTO taskbell.registration (watch_id, task_id, account_id, task_type, url, operation_id, scheme, token,
            credentials, sealed, sealed_nonce, sealed_with, signing_scope, states, lane)
    VALUES (found_in.watch_id, id, account, kind, address, config ->> 'operation_id', scheme, config ->> 'token',
            auth ->> 'credentials', sealed, sealed_nonce, sealed_with, scope, wishes, taskbell.lane_of(address))
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        SELECT r.* INTO kept FROM taskbell.registration r WHERE r.watch_id = found_in.watch_id AND r.task_id = id;
        -- What is sealed cannot be compared here.
        IF (kept.url, kept.operation_id, kept.scheme, kept.signing_scope, kept.states)
           IS DISTINCT FROM (address, config ->> 'operation_id', scheme, scope, wishes)
           OR (kept.sealed IS NULL AND sealed IS NULL
               AND (kept.token, kept.credentials) IS DISTINCT FROM (config ->> 'token', auth ->> 'credentials')) THEN
            RAISE EXCEPTION 'taskbell.register_webhook: the task already has another registration'
                USING ERRCODE = 'unique_violation', HINT = 'A registration is fixed when the task is issued.';
        END IF;
    END IF;
END $$;

REVOKE EXECUTE ON FUNCTION taskbell.refuse_registration(text, text), taskbell.lane_of(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA taskbell TO PUBLIC;
GRANT EXECUTE ON FUNCTION taskbell.register_webhook(text, jsonb, regclass, text[], text, bytea, bytea, text) TO PUBLIC;
COMMENT ON FUNCTION taskbell.register_webhook(text, jsonb, regclass, text[], text, bytea, bytea, text) IS
    'Rings this callback when the task ends. Call it in the transaction that inserts the task.';

INSERT INTO taskbell.schema_version (version, name) VALUES (3, 'registrations');
