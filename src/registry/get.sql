-- $1 task id, $2 account or null
SELECT task_id, account_id, state, task_type, progress, result, error, request_context, created_at, updated_at,
       webhook_registration IS NOT NULL AS sealed
FROM decisioning_tasks WHERE task_id = $1 AND ($2::text IS NULL OR account_id = $2)
