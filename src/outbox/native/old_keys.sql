-- Registrations whose secrets are plain, or sealed with another key than the current one.
-- $1 rows at most, $2 the current key's id
SELECT watch_id, task_id, account_id, task_type, url, operation_id, scheme, token, credentials,
       sealed, sealed_nonce, sealed_with
FROM taskbell.registration
WHERE token IS NOT NULL OR credentials IS NOT NULL OR sealed_with <> $2::text
ORDER BY watch_id, task_id LIMIT $1::bigint
FOR UPDATE SKIP LOCKED
