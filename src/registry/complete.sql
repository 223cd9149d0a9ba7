-- Ends an open task. A registration that only the Python SDK can open is not ours to drop.
-- $1 task id, $2 account or null, $3 result, $4 epoch seconds
UPDATE decisioning_tasks
SET state = 'completed', result = $3::text::jsonb, updated_at = $4
WHERE task_id = $1 AND ($2::text IS NULL OR account_id = $2)
  AND state NOT IN ('completed', 'failed') AND webhook_registration IS NULL
