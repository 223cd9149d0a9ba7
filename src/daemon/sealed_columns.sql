-- What the SDK's outbox lacks of what we read and write, and whether it rings our bell.
-- $1 the table, null where there is none
SELECT (SELECT string_agg(c, ', ') FROM unnest(ARRAY['id', 'task_id', 'account_id', 'task_type', 'terminal_status', 'url',
            'operation_id', 'idempotency_key', 'signing_scope_id', 'encrypted_body', 'envelope_nonce', 'state',
            'attempt_count', 'available_at', 'lease_token', 'lease_expires_at', 'created_at', 'updated_at',
            'first_attempt_at', 'retry_until', 'retry_horizon_seconds', 'delivered_at', 'last_http_status',
            'last_error']) AS c
        WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attname = c AND NOT a.attisdropped)),
       EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t.oid AND g.tgname = 'taskbell_doorbell' AND g.tgenabled <> 'D')
FROM (SELECT to_regclass($1) AS oid) t WHERE t.oid IS NOT NULL
