-- Seconds until the next row may be claimed, negative when one is overdue; no row when none waits.
-- A lane whose circuit is closed is due when its pause is over.
WITH RECURSIVE walk AS (
    (SELECT o.lane, o.account_id, o.available_at FROM taskbell.outbox o
     WHERE o.lane IS NOT NULL AND o.state IN ('pending', 'in_flight')
     ORDER BY o.lane, o.account_id, o.available_at LIMIT 1)
    UNION ALL
    SELECT next.lane, next.account_id, next.available_at
    FROM walk w
    CROSS JOIN LATERAL (
        SELECT o.lane, o.account_id, o.available_at FROM taskbell.outbox o
        WHERE o.lane IS NOT NULL AND o.state IN ('pending', 'in_flight')
          AND (o.lane, o.account_id) > (w.lane, w.account_id)
        ORDER BY o.lane, o.account_id, o.available_at LIMIT 1
    ) next
)
SELECT extract(epoch FROM min(greatest(w.available_at, c.closed_until)) - now())::float8
FROM walk w LEFT JOIN taskbell.circuit c USING (lane, account_id)
HAVING count(*) > 0
