-- $1 delivery id
SELECT to_jsonb(a) FROM taskbell.attempt a WHERE a.outbox_id = $1 ORDER BY a.started_at
