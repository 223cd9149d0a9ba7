-- $1 a delivery id, a task id, an operation id or a key
SELECT to_jsonb(d) FROM taskbell.delivery d
WHERE d.delivery_id::text = $1 OR d.task_id = $1 OR d.operation_id = $1
   OR d.idempotency_key = $1
ORDER BY d.delivery_id
