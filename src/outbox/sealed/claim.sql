-- Takes due rows of the SDK's outbox under a lease: the SDK's own predicate and columns, for
-- several rows at a time, passing over lanes that are full.
-- $1 rows, $2 rows per lane, $3 lanes in flight, $4 how many there, $5 lease token, $6 lease seconds,
-- $7 bytes of envelopes, $8 bytes at most for one lane, $9 how many of those each of the lanes in flight has,
-- $10 lanes by the beginnings of URLs, as far as they are known
WITH busy AS (
    SELECT lane, n, bytes FROM unnest($3::text[], $4::bigint[], $9::bigint[]) AS b(lane, n, bytes)
), candidate AS (
    SELECT o.id, o.lane, o.weight, row_number() OVER (PARTITION BY o.lane ORDER BY o.available_at, o.id) AS place
    FROM (
        SELECT t.id, t.available_at, l.lane, least(octet_length(t.encrypted_body), $8::bigint) AS weight
        FROM adcp_task_webhook_outbox t
        -- To work it out takes sixteen times as long, for each row that waits at a lane that is full.
        CROSS JOIN LATERAL (
            SELECT coalesce($10::jsonb ->> lower(split_part(t.url, '/', 1) || '/' || split_part(t.url, '/', 2)
                                                 || '/' || split_part(t.url, '/', 3)),
                            taskbell.lane_of(t.url), 'none') AS lane
        ) l
        WHERE (t.retry_until IS NULL OR t.retry_until > now())
          AND ((t.state = 'pending' AND t.available_at <= now())
               OR (t.state = 'in_flight' AND t.lease_expires_at <= now()))
          AND l.lane <> ALL (ARRAY(SELECT lane FROM busy WHERE n >= $2::bigint))
        ORDER BY t.available_at, t.id
        LIMIT $1::bigint * 4
    ) o
), due AS (
    -- Each is found by its key. A statement that was planned while the table was empty would read all that waits, by the
    -- index whose condition is the plain state, and for a semi-join work out the candidates anew for each row of it.
    SELECT locked.id
    FROM (
        -- One is taken whatever its size: what is larger than a lane's share counts as that.
        SELECT id FROM (
            SELECT id, lane_fits AND sum(weight) FILTER (WHERE lane_fits) OVER (ORDER BY id) - weight < $7::bigint AS fits
            FROM (
                SELECT c.id, c.weight, sum(c.weight) OVER (PARTITION BY lane ORDER BY c.id) - c.weight
                                       < $8::bigint - coalesce(busy.bytes, 0) AS lane_fits
                FROM candidate c LEFT JOIN busy USING (lane)
                WHERE c.place <= $2::bigint - coalesce(busy.n, 0)
            ) c
        ) c
        WHERE fits ORDER BY id LIMIT $1::bigint
    ) picked
    CROSS JOIN LATERAL (
        SELECT t.id FROM adcp_task_webhook_outbox t
        WHERE t.id = picked.id
          AND (t.retry_until IS NULL OR t.retry_until > now())
          AND ((coalesce(t.state, '') = 'pending' AND t.available_at <= now())
               OR (coalesce(t.state, '') = 'in_flight' AND t.lease_expires_at <= now()))
        FOR UPDATE SKIP LOCKED
    ) locked
)
UPDATE adcp_task_webhook_outbox t
SET state = 'in_flight', lease_token = $5, lease_expires_at = now() + $6::float8 * interval '1 second',
    first_attempt_at = coalesce(t.first_attempt_at, now()),
    retry_until = coalesce(t.retry_until, now() + t.retry_horizon_seconds * interval '1 second'),
    attempt_count = t.attempt_count + 1, updated_at = now()
-- An array of one: see native/acknowledge.sql.
FROM due WHERE t.id = ANY (ARRAY[due.id])
RETURNING t.id, t.task_id, t.account_id, t.task_type, t.terminal_status, t.url, t.operation_id, t.idempotency_key,
          t.signing_scope_id, t.encrypted_body, t.envelope_nonce, t.attempt_count,
          coalesce(taskbell.lane_of(t.url), 'none'),
          lower(split_part(t.url, '/', 1) || '/' || split_part(t.url, '/', 2) || '/' || split_part(t.url, '/', 3)),
          extract(epoch FROM now() - t.first_attempt_at)::float8,
          extract(epoch FROM t.retry_until - t.first_attempt_at)::float8,
          extract(epoch FROM now() - t.created_at)::float8
