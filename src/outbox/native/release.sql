-- Gives rows back, or up: released until later, unclaimed, or made dead letters.
-- A release that would come due after the horizon expires the row instead.
-- $1 rows, $2 lease tokens, $3 verdicts (release, unclaim, dead_letter), $4 delay in seconds,
-- $5 started at, $6 duration in ms, $7 statuses, $8 reasons, $9 body sizes,
-- $10 failures in a row that close a circuit, $11 and $12 its first and longest pause in seconds
WITH answer AS (
    SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::float8[], $5::timestamptz[], $6::integer[],
                         $7::integer[], $8::text[], $9::integer[])
        AS a(id, lease_token, verdict, delay_seconds, started_at, duration_ms, status, reason, body_bytes)
), settled AS (
    UPDATE taskbell.outbox o
    SET state = CASE
            WHEN a.verdict = 'dead_letter' THEN 'invalid'
            WHEN a.verdict = 'release' AND now() + a.delay_seconds * interval '1 second' >= o.retry_until THEN 'expired'
            ELSE 'pending' END,
        available_at = CASE
            WHEN a.verdict = 'dead_letter'
                 OR (a.verdict = 'release' AND now() + a.delay_seconds * interval '1 second' >= o.retry_until) THEN NULL
            ELSE now() + a.delay_seconds * interval '1 second' END,
        lease_token = NULL, lease_expires_at = NULL,
        attempt_count = o.attempt_count - CASE a.verdict WHEN 'unclaim' THEN 1 ELSE 0 END,
        first_attempt_at = CASE WHEN a.verdict = 'unclaim' AND o.attempt_count = 1 THEN NULL ELSE o.first_attempt_at END,
        retry_until = CASE WHEN a.verdict = 'unclaim' AND o.attempt_count = 1 THEN NULL ELSE o.retry_until END,
        last_status = CASE a.verdict WHEN 'unclaim' THEN o.last_status ELSE a.status END,
        last_reason = coalesce(a.reason, o.last_reason)
    FROM answer a
    -- An array of one: see acknowledge.sql.
    WHERE o.id = ANY (ARRAY[a.id]) AND o.lease_token = a.lease_token AND o.state = 'in_flight'
    RETURNING o.id, o.state, o.lane, o.account_id, o.task_id, o.idempotency_key, o.attempt_count, a.started_at, a.duration_ms, a.status, a.reason,
              a.verdict, a.body_bytes
), logged AS (
    INSERT INTO taskbell.attempt (outbox_id, task_id, idempotency_key, attempt, started_at, duration_ms, status,
                                  reason, verdict, body_bytes)
    SELECT id, task_id, 'whk_' || idempotency_key, attempt_count, started_at, duration_ms, status, reason, verdict, body_bytes
    FROM settled WHERE verdict <> 'unclaim' AND started_at IS NOT NULL
), tripped AS (
    SELECT taskbell.trip_circuits(array_agg(lane), array_agg(account_id), array_agg(reason), $10::integer,
                                  $11::float8 * interval '1 second', $12::float8 * interval '1 second')
    FROM settled WHERE verdict = 'release' HAVING count(*) > 0
)
SELECT settled.id, settled.state = 'expired', (SELECT count(*) FROM tripped) FROM settled
