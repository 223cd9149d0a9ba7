-- A task with a registration that the Python SDK opens.
-- $1 task id, $2 account, $3 type, $4 context or null, $5 epoch seconds, $6 ciphertext, $7 nonce
INSERT INTO decisioning_tasks (task_id, account_id, state, task_type, request_context, created_at, updated_at,
                               webhook_registration, webhook_registration_nonce)
VALUES ($1, $2, 'submitted', $3, $4::text::jsonb, $5, $5, $6, $7)
