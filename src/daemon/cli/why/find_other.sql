-- Tasks by what their webhook carries. The journal has no index for these: its days since then are read
-- as a whole, the others not at all.
-- $1 an operation id, a key or a delivery id, $2 tasks at most, $3 seconds back, or null for all
SELECT watch_id, task_id FROM taskbell.registration WHERE operation_id = $1
UNION
SELECT watch_id, task_id FROM taskbell.outbox
WHERE lane IS NOT NULL AND ('whk_' || idempotency_key = $1 OR id::text = $1)
UNION
SELECT watch_id, task_id FROM taskbell.transition
WHERE settled_at >= coalesce(now() - $3::float8 * interval '1 second', '-infinity')
  AND delivery IS NOT NULL AND (operation_id = $1 OR 'whk_' || idempotency_key = $1 OR outbox_id::text = $1)
ORDER BY 1, 2 LIMIT $2
