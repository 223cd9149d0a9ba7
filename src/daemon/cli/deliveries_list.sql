-- $1 state or null, $2 task id or null, $3 rows
SELECT to_jsonb(d) FROM taskbell.delivery d
WHERE ($1::text IS NULL OR d.state = $1) AND ($2::text IS NULL OR d.task_id = $2)
ORDER BY d.delivery_id DESC LIMIT $3
