-- Moves state changes that nobody is owed a webhook for into the journal and hands them out,
-- each once.
-- $1 rows at most, $2 the number after which one matters
WITH seen AS (
    SELECT id FROM taskbell.outbox WHERE lane IS NULL AND id > $2::bigint ORDER BY id LIMIT $1::bigint FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM taskbell.outbox o WHERE o.id = ANY (ARRAY(SELECT id FROM seen))
    RETURNING o.id, o.watch_id, o.task_id, nullif(o.account_id, ''), o.task_type, o.from_state, o.to_state,
              o.task_created_at, o.occurred_at
), kept AS (
    INSERT INTO taskbell.transition (outbox_id, watch_id, task_id, account_id, task_type, from_state, to_state,
                                     task_created_at, occurred_at)
    SELECT * FROM gone
)
SELECT id, watch_id, task_id, task_type, from_state, to_state, occurred_at, task_created_at FROM gone
ORDER BY id
