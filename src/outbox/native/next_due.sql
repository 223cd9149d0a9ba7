-- Seconds until the next row may be claimed, negative when one is overdue; no row when none waits.
-- A lane whose circuit is closed is due when its pause is over. Of the others the first row that is not
-- in flight counts, and the leases of those in flight, which stand before all that is not due yet.
-- They are not sought by the time: one may have come, and been claimed, after our now().
-- What is past its horizon nobody claims; expire.sql is for that.
-- $1 rows at most that are asked for their lease
WITH RECURSIVE walk AS (
    (SELECT o.lane, o.account_id FROM taskbell.outbox o
     WHERE o.lane IS NOT NULL AND o.available_at IS NOT NULL
     ORDER BY o.lane, o.account_id LIMIT 1)
    UNION ALL
    SELECT next.lane, next.account_id
    FROM walk w
    CROSS JOIN LATERAL (
        SELECT o.lane, o.account_id FROM taskbell.outbox o
        WHERE o.lane IS NOT NULL AND o.available_at IS NOT NULL
          AND (o.lane, o.account_id) > (w.lane, w.account_id)
        ORDER BY o.lane, o.account_id LIMIT 1
    ) next
)
SELECT extract(epoch FROM min(due) - now())::float8
FROM (
    -- In a CASE: a join asks the outbox of every place, and then forgets what it heard of those that are closed. Of 150
    -- places with 100 closed that took 4 to 6 ms instead of 1.7, many times a second.
    SELECT CASE WHEN c.closed_until IS NOT NULL THEN c.closed_until ELSE least((
        SELECT o.available_at FROM taskbell.outbox o
        WHERE o.lane = w.lane AND o.account_id = w.account_id AND o.available_at IS NOT NULL
          AND o.lease_expires_at IS NULL AND (o.retry_until IS NULL OR o.retry_until > now())
        ORDER BY o.available_at, o.id LIMIT 1
    ), (
        SELECT min(f.lease_expires_at) FROM (
            SELECT o.lease_expires_at, o.retry_until FROM taskbell.outbox o
            WHERE o.lane = w.lane AND o.account_id = w.account_id AND o.available_at IS NOT NULL
            ORDER BY o.available_at, o.id LIMIT $1::bigint
        ) f
        WHERE f.retry_until IS NULL OR f.retry_until > f.lease_expires_at
    )) END AS due
    FROM walk w LEFT JOIN taskbell.circuit c USING (lane, account_id)
) place
HAVING count(*) > 0
