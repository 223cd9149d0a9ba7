-- Registrations whose secrets are plain: a partial index has them, as a rule none.
-- $1 rows at most
SELECT watch_id, task_id, account_id, task_type, url, operation_id, scheme, token, credentials,
       sealed, sealed_nonce, sealed_with
FROM taskbell.registration
WHERE token IS NOT NULL OR credentials IS NOT NULL
ORDER BY watch_id, task_id LIMIT $1::bigint
FOR UPDATE SKIP LOCKED
