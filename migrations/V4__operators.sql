-- What operators read, and the two things they may do to a delivery.

-- A callback URL as it may be shown: no query, no fragment, and no part of the path that looks
-- like a token: 20 or more letters and digits, with both of them in it.
CREATE FUNCTION taskbell.redacted_url(url text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parts text[] := string_to_array(split_part(split_part(url, '#', 1), '?', 1), '/');
    part  text;
BEGIN
    -- After the scheme, nothing, and the host.
    FOR n IN 4 .. cardinality(parts) LOOP
        part := parts[n];
        IF length(part) >= 20 AND part ~ '[0-9]' AND part ~ '[A-Za-z]' AND part !~ '[^A-Za-z0-9_.~%=-]' THEN
            parts[n] := '[redacted]';
        END IF;
    END LOOP;
    RETURN array_to_string(parts, '/');
END $$;

-- The same, and no more than a look at most URLs: every acknowledgement pays for it. Without a
-- search_path of its own, so that it is put in place of the call.
CREATE FUNCTION taskbell.shown_url(url text) RETURNS text
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN url ~ '[?#]|//[^/]*/.*[^/]{20}' THEN taskbell.redacted_url(url) ELSE url END
$$;

-- Every webhook owed or settled, newest last. No secrets: URLs as they may be shown.
CREATE VIEW taskbell.delivery AS
    SELECT 'native' AS source, o.id AS delivery_id, o.watch_id, o.task_id,
           nullif(o.account_id, '') AS account_id, o.task_type, o.to_state AS task_state,
           o.state, o.lane, taskbell.shown_url(r.url) AS url, r.operation_id,
           'whk_' || o.idempotency_key AS idempotency_key,
           o.attempt_count, o.occurred_at, o.first_attempt_at, o.retry_until, coalesce(o.lease_expires_at, o.available_at) AS next_attempt_at,
           NULL::timestamptz AS settled_at, o.last_status, o.last_reason
    FROM taskbell.outbox o LEFT JOIN taskbell.registration r USING (watch_id, task_id)
    WHERE o.lane IS NOT NULL
UNION ALL
    SELECT 'native', t.outbox_id, t.watch_id, t.task_id, t.account_id, t.task_type, t.to_state,
           t.delivery, t.lane, t.url, t.operation_id, 'whk_' || t.idempotency_key,
           t.attempt_count, t.occurred_at, t.first_attempt_at, NULL, NULL,
           t.settled_at, t.last_status, t.last_reason
    FROM taskbell.transition t WHERE t.delivery IS NOT NULL;

-- The life of a task: every state change, whether its webhook is still owed or not.
CREATE VIEW taskbell.timeline AS
    SELECT o.id AS transition_id, o.watch_id, o.task_id, nullif(o.account_id, '') AS account_id, o.task_type, o.from_state, o.to_state,
           o.occurred_at FROM taskbell.outbox o
UNION ALL
    SELECT t.outbox_id, t.watch_id, t.task_id, t.account_id, t.task_type, t.from_state, t.to_state,
           t.occurred_at FROM taskbell.transition t;

-- AdCP's webhook_activity records (webhook-activity-record.json), one per attempt that has ended,
-- and around them what a seller chooses by: account, task, type, operation. Every field of the
-- record is here, null where it does not apply: AdCP has no notification_type for tasks yet, no
-- subscriber and no sequence. Ask by task_id, which the journal has an index for.
CREATE VIEW taskbell.webhook_activity AS
    SELECT d.account_id, a.task_id, d.task_type, d.task_state, d.operation_id,
           a.idempotency_key,
           CASE WHEN d.task_state IN ('completed', 'failed', 'canceled', 'rejected')
                THEN a.task_id || '.terminal' END AS notification_id,
           NULL::text AS notification_type, NULL::text AS subscriber_id, NULL::bigint AS sequence_number,
           a.started_at AS fired_at,
           a.started_at + a.duration_ms * interval '1 millisecond' AS completed_at, a.attempt,
           CASE WHEN a.verdict = 'acknowledge' THEN 'success' WHEN a.status IS NOT NULL THEN 'failed'
                WHEN a.reason = 'timeout' THEN 'timeout' ELSE 'connection_error' END AS status,
           d.url, a.status AS http_status_code,
           CASE WHEN a.status IS NOT NULL THEN a.duration_ms END AS response_time_ms,
           a.reason AS error_message, a.body_bytes AS payload_size_bytes
    FROM taskbell.attempt a
    JOIN taskbell.delivery d ON d.delivery_id = a.outbox_id AND d.task_id = a.task_id
    WHERE a.source = 'native';

-- Sends a dead letter again, with its key and its body, and rings. Past its horizon it must be
-- said so: the buyer may have forgotten the key and take the webhook for a new one.
CREATE FUNCTION taskbell.retry_delivery(delivery_id bigint, past_horizon boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owed taskbell.outbox;
BEGIN
    SELECT o.* INTO owed FROM taskbell.outbox o WHERE o.id = delivery_id AND o.lane IS NOT NULL FOR UPDATE;
    IF owed.id IS NULL THEN
        RAISE EXCEPTION 'no webhook is owed under delivery %', delivery_id
            USING ERRCODE = 'no_data_found', HINT = 'It was delivered or cancelled, or never existed.';
    ELSIF owed.state = 'in_flight' THEN
        RAISE EXCEPTION 'delivery % is being attempted right now', delivery_id
            USING ERRCODE = 'object_in_use', HINT = 'Look again in a minute.';
    ELSIF owed.retry_until <= now() AND NOT past_horizon THEN
        RAISE EXCEPTION 'the horizon of delivery % passed at %', delivery_id, owed.retry_until
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'The buyer may no longer remember the key and take it for a new event. '
                         'Say past_horizon to send it all the same.';
    END IF;
    UPDATE taskbell.outbox o
    SET state = 'pending', available_at = now(),
        first_attempt_at = CASE WHEN past_horizon THEN NULL ELSE o.first_attempt_at END,
        retry_until = CASE WHEN past_horizon THEN NULL ELSE o.retry_until END
    WHERE o.id = delivery_id;
    PERFORM taskbell.ring();
END $$;

-- The dead letters that match, to be sent again: each with its key and its body, spread over time
-- so that whoever recovers is not run over. What is past its horizon is left out unless it is said
-- otherwise; what would be due only after it stays dead, and has no next_attempt_at, but keeps its
-- place in the row. A dry run only shows them. For more than a statement has time for, go on behind the
-- last one: `after_id` is its number, `starting` when the next one is due.
CREATE FUNCTION taskbell.retry_deliveries(
    lane         text DEFAULT NULL,
    task_type    text DEFAULT NULL,
    reason       text DEFAULT NULL,
    account_id   text DEFAULT NULL,
    older_than   interval DEFAULT NULL,
    per_second   double precision DEFAULT 50,
    past_horizon boolean DEFAULT false,
    dry_run      boolean DEFAULT true,
    at_most      bigint DEFAULT NULL,
    after_id     bigint DEFAULT 0,
    starting     timestamptz DEFAULT now()
) RETURNS TABLE (delivery_id bigint, task_id text, task_state text, lane_name text, last_reason text,
                 next_attempt_at timestamptz)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF per_second IS NULL OR per_second <= 0 THEN
        RAISE EXCEPTION 'taskbell.retry_deliveries: per_second must be above 0' USING ERRCODE = 'invalid_parameter_value';
    ELSIF after_id IS NULL OR starting IS NULL THEN
        RAISE EXCEPTION 'taskbell.retry_deliveries: after_id and starting must not be null' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY
    WITH dead AS (
        SELECT o.id, o.task_id, o.to_state, o.lane, o.last_reason, o.retry_until FROM taskbell.outbox o
        WHERE o.state IN ('expired', 'invalid') AND o.lane IS NOT NULL
          AND ($1 IS NULL OR o.lane = $1) AND ($2 IS NULL OR o.task_type = $2)
          AND ($3 IS NULL OR o.last_reason = $3) AND ($4 IS NULL OR o.account_id = $4)
          AND ($5 IS NULL OR o.occurred_at < now() - $5)
          AND ($7 OR o.retry_until IS NULL OR o.retry_until > now())
          AND o.id > $10
        ORDER BY o.id LIMIT $9 FOR UPDATE SKIP LOCKED
    ), spread AS (
        SELECT dead.*, $11 + (row_number() OVER (ORDER BY dead.id) - 1) / $6 * interval '1 second' AS due FROM dead
    ), planned AS (
        SELECT s.id, s.task_id, s.to_state, s.lane, s.last_reason,
               CASE WHEN $7 OR s.retry_until IS NULL OR s.due < s.retry_until THEN s.due END AS due
        FROM spread s
    ), sent AS (
        UPDATE taskbell.outbox o
        SET state = 'pending', available_at = planned.due,
            first_attempt_at = CASE WHEN $7 THEN NULL ELSE o.first_attempt_at END,
            retry_until = CASE WHEN $7 THEN NULL ELSE o.retry_until END
        FROM planned WHERE o.id = planned.id AND planned.due IS NOT NULL AND NOT $8
    )
    SELECT planned.id, planned.task_id, planned.to_state, planned.lane, planned.last_reason, planned.due
    FROM planned ORDER BY planned.id;
    IF FOUND AND NOT $8 THEN
        PERFORM taskbell.ring();
    END IF;
END $$;

-- Gives a webhook up: it leaves the outbox for the journal, and if it told of the end of the
-- task its registration is forgotten.
CREATE FUNCTION taskbell.cancel_delivery(delivery_id bigint) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owed taskbell.outbox;
BEGIN
    SELECT o.* INTO owed FROM taskbell.outbox o WHERE o.id = delivery_id AND o.lane IS NOT NULL FOR UPDATE;
    IF owed.id IS NULL THEN
        RAISE EXCEPTION 'no webhook is owed under delivery %', delivery_id
            USING ERRCODE = 'no_data_found', HINT = 'It was delivered or cancelled, or never existed.';
    END IF;
    INSERT INTO taskbell.transition (outbox_id, watch_id, task_id, account_id, task_type, from_state, to_state,
            task_created_at, occurred_at, delivery, lane, url, operation_id, idempotency_key, attempt_count,
            first_attempt_at, last_status, last_reason)
    SELECT owed.id, owed.watch_id, owed.task_id, nullif(owed.account_id, ''), owed.task_type, owed.from_state, owed.to_state,
           owed.task_created_at, owed.occurred_at, 'cancelled', owed.lane, d.url, d.operation_id,
           owed.idempotency_key, owed.attempt_count, owed.first_attempt_at, owed.last_status,
           coalesce(owed.last_reason, 'cancelled')
    FROM taskbell.delivery d WHERE d.delivery_id = owed.id;
    DELETE FROM taskbell.registration r
    WHERE r.watch_id = owed.watch_id AND r.task_id = owed.task_id
      AND owed.to_state IN ('completed', 'failed', 'canceled', 'rejected');
    DELETE FROM taskbell.outbox o WHERE o.id = owed.id;
END $$;

-- Opens the closed circuits of a lane, makes everything due that waits there for its next try, and
-- rings. Says how many circuits. One webhook goes first, and more with every success. Rows that are
-- locked are being claimed.
CREATE FUNCTION taskbell.open_circuits(lane text, account_id text DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    opened bigint;
BEGIN
    UPDATE taskbell.circuit c
    SET failures = 0, pauses = 0, closed_until = NULL, probing = false, recovered = 0
    WHERE c.lane = $1 AND ($2 IS NULL OR c.account_id = $2) AND c.closed_until IS NOT NULL;
    GET DIAGNOSTICS opened = ROW_COUNT;
    WITH waiting AS (
        SELECT o.id FROM taskbell.outbox o
        WHERE o.lane = $1 AND ($2 IS NULL OR o.account_id = $2)
          AND o.state = 'pending' AND o.available_at > now()
        FOR UPDATE SKIP LOCKED
    )
    UPDATE taskbell.outbox o SET available_at = now() FROM waiting WHERE o.id = waiting.id;
    PERFORM taskbell.ring();
    RETURN opened;
END $$;

REVOKE ALL ON ALL TABLES IN SCHEMA taskbell FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION taskbell.retry_delivery(bigint, boolean), taskbell.cancel_delivery(bigint),
    taskbell.retry_deliveries(text, text, text, text, interval, double precision, boolean, boolean, bigint, bigint, timestamptz),
    taskbell.open_circuits(text, text) FROM PUBLIC;

INSERT INTO taskbell.schema_version (version, name) VALUES (4, 'operators');
