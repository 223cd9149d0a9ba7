-- Some rows that the SDK's outbox owes, with what is authenticated with them. $1 how many
SELECT task_id, account_id, task_type, terminal_status, url, operation_id, idempotency_key, signing_scope_id,
       encrypted_body, envelope_nonce
FROM adcp_task_webhook_outbox
WHERE state IN ('pending', 'in_flight')
ORDER BY id DESC
LIMIT $1
