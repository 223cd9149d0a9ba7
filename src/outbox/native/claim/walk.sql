-- Everywhere: a walk over the index visits one destination and account after the other.
-- $13 and $14 lane and account after which it starts (null: at the first)
WITH RECURSIVE walk AS (
    (SELECT o.lane, o.account_id, NULL::timestamptz AS since, 1::bigint AS n FROM taskbell.outbox o
     WHERE o.lane IS NOT NULL AND o.available_at IS NOT NULL
       AND (o.lane, o.account_id) > (coalesce($13::text, ''), coalesce($14::text, ''))
     ORDER BY o.lane, o.account_id LIMIT 1)
    UNION ALL
    SELECT next.lane, next.account_id, NULL::timestamptz, w.n + 1
    FROM walk w
    CROSS JOIN LATERAL (
        SELECT o.lane, o.account_id FROM taskbell.outbox o
        WHERE o.lane IS NOT NULL AND o.available_at IS NOT NULL
          AND (o.lane, o.account_id) > (w.lane, w.account_id)
        ORDER BY o.lane, o.account_id LIMIT 1
    ) next
    WHERE w.n < $9::bigint
), probe AS (
    -- Locked, so that of several daemons one probes.
    SELECT c.lane, c.account_id FROM taskbell.circuit c
    WHERE c.closed_until <= now() FOR UPDATE SKIP LOCKED
