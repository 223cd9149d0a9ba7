-- Dead letters, newest first, and how many there are.
SELECT jsonb_build_object(
    'id', o.id, 'source', 'native', 'task_id', o.task_id, 'task_type', o.task_type,
    'account_id', nullif(o.account_id, ''), 'task_state', o.to_state, 'state', o.state, 'reason', o.last_reason,
    'status', o.last_status, 'attempts', o.attempt_count, 'age', extract(epoch FROM now() - o.occurred_at),
    'url', (SELECT taskbell.shown_url(r.url) FROM taskbell.registration r
            WHERE r.watch_id = o.watch_id AND r.task_id = o.task_id)), o.n
FROM (
    SELECT *, (SELECT count(*) FROM taskbell.outbox WHERE state IN ('expired', 'invalid') AND lane IS NOT NULL) AS n
    FROM taskbell.outbox
    WHERE state IN ('expired', 'invalid') AND lane IS NOT NULL ORDER BY id DESC LIMIT 20
) o ORDER BY o.id DESC
