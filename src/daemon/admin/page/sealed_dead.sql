-- Dead letters of the SDK's outbox, as `dead.sql` shows ours.
SELECT jsonb_build_object(
    'id', id, 'source', 'sealed', 'task_id', task_id, 'task_type', task_type, 'account_id', account_id,
    'task_state', terminal_status, 'state', state, 'reason', last_error, 'status', last_http_status,
    'attempts', attempt_count, 'age', extract(epoch FROM now() - created_at),
    'url', taskbell.shown_url(url)), count(*) OVER ()
FROM adcp_task_webhook_outbox WHERE state IN ('expired', 'invalid') ORDER BY id DESC LIMIT 20
