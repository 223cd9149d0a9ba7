-- Seconds until the next row may be claimed, negative when one is overdue; no row when none waits.
-- A lane whose circuit is closed is due when its pause is over. Of each lane the first rows count:
-- those in flight stand before all others, each due when its lease runs out.
-- $1 how many
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
SELECT extract(epoch FROM min(greatest(first.due, c.closed_until)) - now())::float8
FROM walk w
CROSS JOIN LATERAL (
    SELECT min(coalesce(rows.lease_expires_at, rows.available_at)) AS due
    FROM (
        SELECT o.lease_expires_at, o.available_at FROM taskbell.outbox o
        WHERE o.lane = w.lane AND o.account_id = w.account_id AND o.available_at IS NOT NULL
        ORDER BY o.available_at, o.id LIMIT $1::bigint
    ) rows
) first
LEFT JOIN taskbell.circuit c USING (lane, account_id)
HAVING count(*) > 0
