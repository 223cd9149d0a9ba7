-- $1 finished ones too, $2 account or null, $3 rows
SELECT jsonb_build_object('task_id', task_id, 'account_id', account_id, 'task_type', task_type, 'state', state,
                          'age', date_trunc('second', now() - to_timestamp(created_at))::text)
FROM decisioning_tasks
WHERE ($1 OR state NOT IN ('completed', 'failed', 'canceled', 'rejected')) AND ($2::text IS NULL OR account_id = $2)
ORDER BY created_at LIMIT $3
