-- $1 task id
SELECT jsonb_build_object('at', occurred_at, 'from', from_state, 'to', to_state)
FROM taskbell.timeline WHERE task_id = $1 ORDER BY transition_id
