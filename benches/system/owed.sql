-- $1 webhooks owed by 50 accounts, $2 prefix of their tasks, $3 ports, $4 path, $5 result; as after the commit
-- of those that ended the tasks, what came before being seen long ago
WITH task AS (
    SELECT i, $2::text || i AS id, 'acct_' || i % 50 AS account,
           'https://localhost:' || ($3::integer[])[1 + i % cardinality($3::integer[])] AS lane
    FROM generate_series(1, $1::bigint) AS i
), watched AS (
    SELECT watch_id FROM taskbell.watched_table WHERE relation = 'decisioning_tasks'::regclass
), registered AS (
    INSERT INTO taskbell.registration (watch_id, task_id, account_id, task_type, url, operation_id, lane)
    SELECT watch_id, id, account, 'create_media_buy', lane || '/' || $4::text, 'op_' || i, lane FROM task, watched
)
INSERT INTO taskbell.outbox (watch_id, task_id, account_id, task_type, from_state, to_state, task_created_at, lane,
                             idempotency_key, document)
SELECT watch_id, id, account, 'create_media_buy', 'working', 'completed', now(), lane, gen_random_uuid(), $5::text::jsonb
FROM task, watched ORDER BY i
