-- Takes due rows under a lease. Lanes that are full are passed over; a lane with room gives at
-- most as many rows as it has room for, so that nothing claimed has to wait in memory.
-- The candidates are read without locks and locked afterwards, because a window function and
-- FOR UPDATE do not go together; a row that another daemon took in between fails the recheck.
-- $1 rows, $2 rows per lane, $3 lanes in flight, $4 how many there, $5 lease token,
-- $6 lease seconds, $7 horizon seconds
WITH busy AS (
    SELECT lane, n FROM unnest($3::text[], $4::bigint[]) AS b(lane, n)
), candidate AS (
    SELECT o.id, o.lane, row_number() OVER (PARTITION BY o.lane ORDER BY o.available_at, o.id) AS place
    FROM (
        SELECT id, lane, available_at FROM taskbell.outbox
        WHERE lane IS NOT NULL AND state IN ('pending', 'in_flight') AND available_at <= now()
          AND (retry_until IS NULL OR retry_until > now())
          AND lane <> ALL (ARRAY(SELECT lane FROM busy WHERE n >= $2::bigint))
        ORDER BY available_at, id
        LIMIT $1::bigint * 4
    ) o
), due AS (
    SELECT o.id, NOT o.observed AS is_new FROM taskbell.outbox o
    WHERE o.id IN (
        SELECT c.id FROM candidate c LEFT JOIN busy USING (lane)
        WHERE c.place <= $2::bigint - coalesce(busy.n, 0) ORDER BY c.id LIMIT $1::bigint
    )
      AND o.state IN ('pending', 'in_flight') AND o.available_at <= now()
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE taskbell.outbox o
    SET state = 'in_flight', observed = true, lease_token = $5, attempt_count = o.attempt_count + 1,
        available_at = now() + $6::float8 * interval '1 second',
        first_attempt_at = coalesce(o.first_attempt_at, now()),
        retry_until = coalesce(o.retry_until, now() + $7::float8 * interval '1 second')
    FROM due WHERE o.id = due.id
    RETURNING o.*, due.is_new
)
SELECT c.id, c.watch_id, c.task_id, c.task_type, c.from_state, c.to_state, c.occurred_at, c.task_created_at,
       before.to_state, before.occurred_at,
       c.lane, c.idempotency_key, c.attempt_count,
       extract(epoch FROM now() - c.first_attempt_at)::float8,
       extract(epoch FROM c.retry_until - c.first_attempt_at)::float8,
       extract(epoch FROM now() - c.occurred_at)::float8,
       c.document::text, c.context::text,
       r.url, r.operation_id, r.token, r.scheme, r.credentials,
       EXISTS (SELECT FROM taskbell.task_type t WHERE t.name = c.task_type),
       c.account_id, r.sealed, r.sealed_nonce, r.sealed_with, r.signing_scope,
       -- An open state is old news once a later one goes out with it, or was delivered.
       c.to_state NOT IN ('completed', 'failed', 'canceled', 'rejected') AND (
           EXISTS (SELECT FROM claimed n WHERE n.task_id = c.task_id AND n.watch_id = c.watch_id AND n.id > c.id)
           OR EXISTS (SELECT FROM taskbell.transition t WHERE t.task_id = c.task_id AND t.watch_id = c.watch_id
                      AND t.outbox_id > c.id AND t.delivery IS NOT NULL)
       ),
       c.is_new
FROM claimed c
LEFT JOIN taskbell.registration r ON r.watch_id = c.watch_id AND r.task_id = c.task_id
LEFT JOIN LATERAL (
    SELECT t.to_state, t.occurred_at FROM taskbell.transition t
    WHERE c.is_new AND t.task_id = c.task_id AND t.watch_id = c.watch_id
    ORDER BY t.occurred_at DESC LIMIT 1
) before ON true
ORDER BY c.id
