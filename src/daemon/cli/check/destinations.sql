-- Destinations, at most $1: those that webhooks are owed to now, by a walk over the index, and
-- those of the last attempts.
WITH RECURSIVE owed AS (
    (SELECT o.lane, 1 AS n FROM taskbell.outbox o
     WHERE o.lane IS NOT NULL AND o.available_at IS NOT NULL
     ORDER BY o.lane LIMIT 1)
    UNION ALL
    SELECT next.lane, owed.n + 1
    FROM owed
    CROSS JOIN LATERAL (
        SELECT o.lane FROM taskbell.outbox o
        WHERE o.lane > owed.lane AND o.available_at IS NOT NULL
        ORDER BY o.lane LIMIT 1
    ) next
    WHERE owed.n < $1::bigint
), used AS (
    SELECT t.lane, max(a.recorded_at) AS at
    FROM (SELECT a.outbox_id, a.task_id, a.recorded_at FROM taskbell.attempt a
          WHERE a.source = 'native' ORDER BY a.recorded_at DESC LIMIT 500) a
    JOIN taskbell.transition t ON t.task_id = a.task_id AND t.outbox_id = a.outbox_id
    WHERE t.lane IS NOT NULL
    GROUP BY t.lane
)
SELECT lane
FROM (SELECT lane, NULL::timestamptz AS at FROM owed UNION ALL SELECT lane, at FROM used) AS lanes
GROUP BY lane
ORDER BY bool_or(at IS NULL) DESC, max(at) DESC, lane
LIMIT $1::bigint
