-- $1 task id, $2 account, $3 type, $4 context or null, $5 epoch seconds
INSERT INTO decisioning_tasks (task_id, account_id, state, task_type, request_context, created_at, updated_at)
VALUES ($1, $2, 'submitted', $3, $4::text::jsonb, $5, $5)
