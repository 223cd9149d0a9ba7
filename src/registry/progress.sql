-- $1 task id, $2 account or null, $3 progress, $4 epoch seconds
UPDATE decisioning_tasks
SET state = 'working', progress = $3::text::jsonb, updated_at = $4
WHERE task_id = $1 AND ($2::text IS NULL OR account_id = $2) AND state IN ('submitted', 'working')
