-- Ten million delivered webhooks, a million a day up to today, and their attempts.
DO $$
DECLARE
    parent text;
    day    date;
BEGIN
    FOREACH parent IN ARRAY ARRAY['transition', 'attempt'] LOOP
        FOR n IN 1..9 LOOP
            day := (now() AT TIME ZONE 'UTC')::date - n;
            EXECUTE format('CREATE TABLE IF NOT EXISTS taskbell.%I PARTITION OF taskbell.%I FOR VALUES FROM (%L) TO (%L)',
                           parent || to_char(day, '_YYYYMMDD'), parent,
                           day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
        END LOOP;
    END LOOP;
END $$;
INSERT INTO taskbell.transition (outbox_id, watch_id, task_id, account_id, task_type, from_state, to_state,
        task_created_at, occurred_at, settled_at, delivery, lane, url, operation_id, idempotency_key, attempt_count,
        first_attempt_at, last_status)
SELECT -i, 1, md5(i::text), 'acct_' || (i % 50), 'create_media_buy', 'submitted', 'completed', moment - interval '1 hour',
       moment, moment, 'delivered', 'https://localhost:' || (i % 50), 'https://localhost:' || (i % 50) || '/ok', 'op_' || i,
       gen_random_uuid(), 1, moment, 200
FROM generate_series(1, 10000000) AS i,
     LATERAL (SELECT date_trunc('day', now()) - (i % 10) * interval '1 day' + interval '1 second' AS moment) d;
INSERT INTO taskbell.attempt (outbox_id, task_id, idempotency_key, attempt, started_at, duration_ms, status, verdict,
        body_bytes, recorded_at)
SELECT -i, md5(i::text), 'whk_' || gen_random_uuid(), 1, moment, 3, 200, 'acknowledge', 1300, moment
FROM generate_series(1, 10000000) AS i,
     LATERAL (SELECT date_trunc('day', now()) - (i % 10) * interval '1 day' + interval '1 second' AS moment) d;
