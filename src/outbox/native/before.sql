-- The last change before each of these: its number, the state that it entered, and when. Not by the time, which two of our
-- clocks may disagree about: later changes of a task have higher numbers.
-- $1 tables watched, $2 tasks, $3 changes, $4 when the tasks were created, $5 the earliest of that
SELECT c.n, before.outbox_id, before.to_state, before.occurred_at
FROM unnest($1::smallint[], $2::text[], $3::bigint[], $4::timestamptz[])
    WITH ORDINALITY AS c(watch_id, task_id, id, created_at, n)
CROSS JOIN LATERAL (
    SELECT t.outbox_id, t.to_state, t.occurred_at FROM taskbell.transition t
    WHERE t.task_id = c.task_id AND t.watch_id = c.watch_id AND t.outbox_id < c.id
      -- No transition is older than its task, but for clocks that differ: those days are not looked at, and what
      -- is known before the statement begins does not even open them.
      AND t.settled_at BETWEEN $5::timestamptz - interval '1 day' AND now()
      AND t.settled_at >= coalesce(c.created_at - interval '1 day', '-infinity')
    ORDER BY t.outbox_id DESC LIMIT 1
) before
