-- $1 task id, $2 account or null
DELETE FROM decisioning_tasks WHERE task_id = $1 AND ($2::text IS NULL OR account_id = $2)
