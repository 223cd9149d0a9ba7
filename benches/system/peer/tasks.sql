-- $1 tasks, $2 ports
INSERT INTO tasks (task_id, account_id, task_type, url)
SELECT 'task_' || i, 'acct_' || (i % 50), 'create_media_buy',
       'https://localhost:' || ($2::integer[])[1 + i % cardinality($2::integer[])] || '/ok'
FROM generate_series(1, $1::bigint) AS i
