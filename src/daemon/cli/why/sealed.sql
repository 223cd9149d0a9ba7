-- What the SDK's outbox says of its webhooks, in the words of `journal.sql`.
-- $1 any id, $2 whether this daemon's configuration serves the table, $3 rows at most
SELECT jsonb_build_object(
    'source', 'sealed', 'served', $2::boolean, 'delivery_id', o.id, 'task_id', o.task_id,
    'account_id', o.account_id, 'task_type', o.task_type, 'task_state', o.terminal_status, 'state', o.state,
    'lane', taskbell.lane_of(o.url), 'url', taskbell.shown_url(o.url), 'operation_id', o.operation_id,
    'idempotency_key', o.idempotency_key, 'attempt_count', o.attempt_count, 'occurred_at', o.created_at,
    'first_attempt_at', o.first_attempt_at, 'retry_until', o.retry_until, 'next_attempt_at', n.at,
    'settled_at', o.delivered_at, 'last_status', o.last_http_status, 'last_reason', o.last_error,
    'next_in', extract(epoch FROM n.at - now()), 'horizon_in', extract(epoch FROM o.retry_until - now()),
    'attempts', coalesce((
        SELECT jsonb_agg(jsonb_build_object('attempt', a.attempt, 'started_at', a.started_at,
            'duration_ms', a.duration_ms, 'status', a.status, 'reason', a.reason, 'verdict', a.verdict)
            ORDER BY a.started_at)
        FROM taskbell.attempt a WHERE a.source = 'sealed' AND a.outbox_id = o.id), '[]'))
FROM adcp_task_webhook_outbox o
CROSS JOIN LATERAL (SELECT CASE o.state WHEN 'pending' THEN o.available_at
                                        WHEN 'in_flight' THEN o.lease_expires_at END AS at) n
WHERE o.task_id = $1 OR o.operation_id = $1 OR o.idempotency_key = $1 OR o.id::text = $1
ORDER BY o.id LIMIT $3
