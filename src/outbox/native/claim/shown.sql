-- What became ours, with what is needed to send it; a single row of nulls where nothing did. In no order.
)
SELECT c.id, c.watch_id, c.task_id, c.task_type, c.from_state, c.to_state, c.occurred_at, c.task_created_at,
       c.lane, c.idempotency_key, c.attempt_count,
       extract(epoch FROM now() - c.first_attempt_at)::float8,
       extract(epoch FROM c.retry_until - c.first_attempt_at)::float8,
       extract(epoch FROM now() - c.occurred_at)::float8,
       c.document::text, c.context::text,
       r.url, r.operation_id, r.token, r.scheme, r.credentials,
       c.task_type IN (SELECT name FROM taskbell.task_type),
       nullif(c.account_id, ''), r.sealed, r.sealed_nonce, r.sealed_with, r.signing_scope,
       -- An open state is old news once a later one goes out with it, or has gone out. After the
       -- end of the task there is no registration any more.
       c.to_state NOT IN ('completed', 'failed', 'canceled', 'rejected') AND (
           EXISTS (SELECT FROM claimed n WHERE n.task_id = c.task_id AND n.watch_id = c.watch_id AND n.id > c.id)
           OR coalesce(r.newest_sent, 0) > c.id OR r.task_id IS NULL
       ),
       visited.all, visited.lane, visited.account_id, NOT c.seen,
       -- Transactions that began a little earlier may still commit rows of before.
       least(c.available_at, now() - interval '2 seconds'), taskbell.bell_of(c.lane, c.account_id)::bigint,
       visited.recorded, visited.more, extract(epoch FROM clock_timestamp() - statement_timestamp())::float8
FROM visited
LEFT JOIN claimed c ON true
-- An array of one: see acknowledge.sql.
LEFT JOIN taskbell.registration r ON r.watch_id = c.watch_id AND r.task_id = ANY (ARRAY[c.task_id])
