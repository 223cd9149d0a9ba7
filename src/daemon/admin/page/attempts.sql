-- The last attempts, newest first. $1 rows
SELECT jsonb_build_object(
    'id', a.source || a.outbox_id || '.' || a.attempt || '.' || extract(epoch FROM a.started_at),
    'ago', extract(epoch FROM now() - a.recorded_at), 'task_id', a.task_id, 'attempt', a.attempt,
    'duration_ms', a.duration_ms, 'status', a.status, 'reason', a.reason, 'verdict', a.verdict,
    'source', a.source, 'url', d.url, 'task_state', d.task_state), 0::bigint
FROM (SELECT * FROM taskbell.attempt ORDER BY recorded_at DESC LIMIT $1) a
LEFT JOIN LATERAL (
    SELECT d.url, d.task_state FROM taskbell.delivery d
    WHERE a.source = 'native' AND d.delivery_id = a.outbox_id AND d.task_id = a.task_id
) d ON true
ORDER BY a.recorded_at DESC
