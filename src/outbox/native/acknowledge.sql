-- Moves delivered and superseded rows into the journal, forgets the registrations of tasks that
-- have ended, logs the attempts.
-- Says which rows were still ours, and whether a circuit has healed; a row that is missing was claimed by
-- somebody else.
-- $1 rows, $2 lease tokens, $3 started at, $4 duration in ms, $5 statuses, $6 body sizes,
-- $7 verdicts (acknowledge, supersede)
WITH answer AS (
    SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::timestamptz[], $4::integer[], $5::integer[], $6::integer[],
                         $7::text[])
        AS a(id, lease_token, started_at, duration_ms, status, body_bytes, verdict)
), gone AS (
    DELETE FROM taskbell.outbox o USING answer a
    -- An array of one cannot be hashed or sorted for: each is found by its key, also by a plan that was made while there
    -- was nothing and that would read all for a plain equality. So below.
    WHERE o.id = ANY (ARRAY[a.id]) AND o.lease_token = a.lease_token AND o.state = 'in_flight'
    -- Without the documents: a DELETE or UPDATE with USING carries whole rows of it along, for which PostgreSQL reads
    -- what is in TOAST and copies it. That was 0.4 ms for a result of 384 KB.
    RETURNING o.id, o.watch_id, o.task_id, o.account_id, o.task_type, o.from_state, o.to_state, o.task_created_at,
              o.occurred_at, o.lane, o.idempotency_key, o.attempt_count, o.first_attempt_at,
              a.started_at, a.duration_ms, a.status, a.body_bytes, a.verdict
), forgotten AS (
    DELETE FROM taskbell.registration r USING gone g
    WHERE r.watch_id = g.watch_id AND r.task_id = ANY (ARRAY[g.task_id])
      AND g.to_state IN ('completed', 'failed', 'canceled', 'rejected')
), newest AS (
    UPDATE taskbell.registration r SET newest_sent = g.id
    FROM (
        SELECT watch_id, task_id, max(id) AS id FROM gone GROUP BY 1, 2
        HAVING bool_and(to_state NOT IN ('completed', 'failed', 'canceled', 'rejected'))
    ) g
    WHERE r.watch_id = g.watch_id AND r.task_id = ANY (ARRAY[g.task_id]) AND g.id > coalesce(r.newest_sent, 0)
), kept AS (
    INSERT INTO taskbell.transition (outbox_id, watch_id, task_id, account_id, task_type, from_state, to_state,
            task_created_at, occurred_at, delivery, lane, url, operation_id, idempotency_key, attempt_count,
            first_attempt_at, last_status)
    SELECT g.id, g.watch_id, g.task_id, nullif(g.account_id, ''), g.task_type, g.from_state, g.to_state,
           g.task_created_at, g.occurred_at, CASE g.verdict WHEN 'supersede' THEN 'superseded' ELSE 'delivered' END, g.lane,
           taskbell.shown_url(r.url), r.operation_id, g.idempotency_key,
           g.attempt_count, g.first_attempt_at, g.status
    FROM gone g LEFT JOIN taskbell.registration r ON r.watch_id = g.watch_id AND r.task_id = ANY (ARRAY[g.task_id])
), logged AS (
    INSERT INTO taskbell.attempt (outbox_id, task_id, idempotency_key, attempt, started_at, duration_ms, status,
                                  verdict, body_bytes)
    SELECT g.id, g.task_id, 'whk_' || g.idempotency_key, g.attempt_count, g.started_at, g.duration_ms, g.status,
           'acknowledge', g.body_bytes
    FROM gone g WHERE g.started_at IS NOT NULL
), healed AS (
    SELECT taskbell.heal_circuits(array_agg(g.lane), array_agg(g.account_id))
    FROM gone g JOIN taskbell.circuit c USING (lane, account_id)
    WHERE g.verdict = 'acknowledge' HAVING count(*) > 0
)
SELECT gone.id, (SELECT count(*) FROM healed) > 0 FROM gone
