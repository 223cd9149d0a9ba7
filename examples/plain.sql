-- A seller in plain SQL: any language, any client, a person in psql.
--
--   psql -v callback=https://buyer.example/hook -f plain.sql

-- Once, when Taskbell is installed: taskbell migrate.

-- A buyer's create_media_buy needs a person. Both statements in one transaction: if the callback
-- is refused, the task is not there either.
BEGIN;
INSERT INTO decisioning_tasks (task_id, account_id, task_type, request_context, created_at, updated_at)
VALUES ('task_sql_1', 'acct_42', 'create_media_buy', '{"campaign": "spring"}',
        extract(epoch FROM now()), extract(epoch FROM now()));
SELECT taskbell.register_webhook('task_sql_1',
    jsonb_build_object('url', :'callback', 'operation_id', 'op_sql', 'token', 'a token of the buyer, echoed'));
COMMIT;

-- Somebody works on it.
UPDATE decisioning_tasks
SET state = 'working', progress = '{"percentage": 50, "current_step": "legal review"}',
    updated_at = extract(epoch FROM now())
WHERE task_id = 'task_sql_1' AND state NOT IN ('completed', 'failed');

-- And ends it: this commit rings the buyer.
UPDATE decisioning_tasks
SET state = 'completed', result = '{"media_buy_id": "mb_1"}', updated_at = extract(epoch FROM now())
WHERE task_id = 'task_sql_1' AND state NOT IN ('completed', 'failed');

-- What became of it.
SELECT occurred_at, from_state, to_state FROM taskbell.timeline WHERE task_id = 'task_sql_1' ORDER BY 1;
SELECT state, attempt_count, last_status, last_reason FROM taskbell.delivery WHERE task_id = 'task_sql_1';
