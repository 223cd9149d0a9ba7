-- Moves state changes that nobody is owed a webhook for into the journal and hands them out,
-- each once, with the transition before it.
-- $1 rows at most
WITH seen AS (
    SELECT id FROM taskbell.outbox WHERE lane IS NULL ORDER BY id LIMIT $1::bigint FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM taskbell.outbox o USING seen WHERE o.id = seen.id
    RETURNING o.id, o.watch_id, o.task_id, nullif(o.account_id, ''), o.task_type, o.from_state, o.to_state,
              o.task_created_at, o.occurred_at
), kept AS (
    INSERT INTO taskbell.transition (outbox_id, watch_id, task_id, account_id, task_type, from_state, to_state,
                                     task_created_at, occurred_at)
    SELECT * FROM gone
)
SELECT g.id, g.watch_id, g.task_id, g.task_type, g.from_state, g.to_state, g.occurred_at, g.task_created_at,
       before.to_state, before.occurred_at
FROM gone g
LEFT JOIN LATERAL (
    SELECT t.to_state, t.occurred_at FROM taskbell.transition t
    WHERE g.from_state IS NOT NULL AND t.task_id = g.task_id AND t.watch_id = g.watch_id
      AND t.settled_at BETWEEN coalesce(g.task_created_at - interval '1 day', '-infinity') AND now()
    ORDER BY t.occurred_at DESC LIMIT 1
) before ON true
ORDER BY g.id
