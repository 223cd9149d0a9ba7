-- Registrations whose secrets are plain, or sealed with another key than the current one.
-- $1 the current key's id, $2 whether those of other keys count too, $3 rows at most
SELECT watch_id, task_id, account_id, task_type, url, operation_id, scheme, token, credentials,
       sealed, sealed_nonce, sealed_with
FROM taskbell.registration
WHERE token IS NOT NULL OR credentials IS NOT NULL OR ($2::boolean AND sealed_with <> $1::text)
ORDER BY watch_id, task_id LIMIT $3::bigint
FOR UPDATE SKIP LOCKED
