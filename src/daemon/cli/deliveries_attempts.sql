-- $1 delivery id, $2 source
SELECT to_jsonb(a) FROM taskbell.attempt a WHERE a.outbox_id = $1 AND a.source = $2 ORDER BY a.started_at
