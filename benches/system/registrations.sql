-- $1 tasks, $2 prefix of their ids, $3 ports, $4 path
INSERT INTO taskbell.registration (watch_id, task_id, account_id, task_type, url, operation_id, lane)
SELECT w.watch_id, t.task_id, t.account_id, t.task_type, lane || '/' || $4::text, 'op_' || i, lane
FROM generate_series(1, $1::bigint) AS i
JOIN decisioning_tasks t ON t.task_id = $2::text || i
CROSS JOIN LATERAL (SELECT 'https://localhost:' || ($3::integer[])[1 + i % cardinality($3::integer[])] AS lane) d
CROSS JOIN taskbell.watched_table w WHERE w.relation = 'decisioning_tasks'::regclass
