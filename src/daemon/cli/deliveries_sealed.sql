-- Rows of the SDK's outbox, as `taskbell.delivery` shows ours.
-- $1 state or null, $2 task id or null, $3 any id or null, $4 rows
SELECT jsonb_build_object(
    'source', 'sealed', 'delivery_id', id, 'task_id', task_id, 'account_id', account_id, 'task_type', task_type,
    'task_state', terminal_status, 'state', state, 'lane', taskbell.lane_of(url),
    'url', taskbell.shown_url(url), 'operation_id', operation_id, 'idempotency_key', idempotency_key,
    'attempt_count', attempt_count, 'occurred_at', created_at, 'first_attempt_at', first_attempt_at,
    'retry_until', retry_until, 'next_attempt_at', available_at, 'settled_at', delivered_at,
    'last_status', last_http_status, 'last_reason', last_error)
FROM adcp_task_webhook_outbox
WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR task_id = $2)
  AND ($3::text IS NULL OR id::text = $3 OR task_id = $3 OR operation_id = $3 OR idempotency_key = $3)
ORDER BY id DESC LIMIT $4
