-- The SDK's ack, release and quarantine, each under the lease token, and our line in the attempt log.
-- $1 rows, $2 lease tokens, $3 verdicts, $4 delay in seconds,
-- $5 statuses, $6 texts for last_error, $7 started at, $8 duration in ms, $9 reasons, $10 body sizes
WITH answer AS (
    SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::float8[], $5::integer[], $6::text[],
                         $7::timestamptz[], $8::integer[], $9::text[], $10::integer[])
        AS a(id, lease_token, verdict, delay_seconds, status, last_error, started_at, duration_ms, reason, body_bytes)
), settled AS (
    UPDATE adcp_task_webhook_outbox t
    SET state = CASE a.verdict WHEN 'acknowledge' THEN 'delivered' WHEN 'dead_letter' THEN 'invalid'
                ELSE CASE WHEN t.retry_until <= now() THEN 'expired' ELSE 'pending' END END,
        delivered_at = CASE a.verdict WHEN 'acknowledge' THEN now() ELSE t.delivered_at END,
        available_at = CASE WHEN a.verdict IN ('release', 'unclaim') AND t.retry_until > now()
                       THEN now() + a.delay_seconds * interval '1 second' ELSE t.available_at END,
        last_http_status = CASE a.verdict WHEN 'dead_letter' THEN t.last_http_status ELSE a.status END,
        last_error = a.last_error,
        lease_token = NULL, lease_expires_at = NULL, updated_at = now()
    FROM answer a
    -- By its key, whatever the plan was made for: an array of one cannot be hashed, and a state that is not plain has no
    -- index.
    WHERE t.id = ANY (ARRAY[a.id]) AND coalesce(t.state, '') = 'in_flight' AND t.lease_token = replace(a.lease_token::text, '-', '')
    RETURNING t.id, t.state, t.task_id, t.idempotency_key, t.attempt_count, a.started_at, a.duration_ms, a.status,
              a.reason, a.verdict, a.body_bytes
), logged AS (
    INSERT INTO taskbell.attempt (source, outbox_id, task_id, idempotency_key, attempt, started_at, duration_ms,
                                  status, reason, verdict, body_bytes)
    SELECT 'sealed', id, task_id, idempotency_key, attempt_count, started_at, duration_ms, status, reason,
           CASE verdict WHEN 'unclaim' THEN 'release' ELSE verdict END,
           body_bytes
    FROM settled WHERE started_at IS NOT NULL
)
SELECT id, state = 'expired' FROM settled
