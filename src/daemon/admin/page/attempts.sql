-- The last attempts, newest first. The webhook of each is looked up by itself: joined, it would
-- have the planner read the whole journal for twenty rows.
SELECT jsonb_build_object(
    'id', a.source || a.outbox_id || '.' || a.attempt || '.' || extract(epoch FROM a.started_at),
    'ago', extract(epoch FROM now() - a.recorded_at), 'task_id', a.task_id, 'attempt', a.attempt,
    'duration_ms', a.duration_ms, 'status', a.status, 'reason', a.reason, 'verdict', a.verdict, 'source', a.source,
    'url', CASE a.source WHEN 'native' THEN (
        SELECT d.url FROM taskbell.delivery d
        WHERE d.delivery_id = a.outbox_id AND d.task_id = a.task_id LIMIT 1) END), 0::bigint
FROM (SELECT * FROM taskbell.attempt ORDER BY recorded_at DESC LIMIT 20) a
ORDER BY a.recorded_at DESC
