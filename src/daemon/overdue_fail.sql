-- Open tasks of our own table that have been open past the limit after which they are failed.
-- $1 types, $2 seconds, $3 rows at most, $4 tasks that could not be failed
SELECT t.task_id, t.task_type, l.seconds
FROM decisioning_tasks t
JOIN unnest($1::text[], $2::float8[]) AS l(task_type, seconds) ON l.task_type = t.task_type
WHERE t.state IN ('submitted', 'working', 'input-required', 'auth-required')
  -- The SDK's own registrations are ended by the SDK.
  AND t.webhook_registration IS NULL
  AND t.created_at BETWEEN 0 AND 253402300799 AND to_timestamp(t.created_at) < now() - l.seconds * interval '1 second'
  AND t.task_id <> ALL($4::text[])
ORDER BY t.created_at LIMIT $3
-- What somebody works on at this moment is decided, or comes again.
FOR UPDATE OF t SKIP LOCKED
