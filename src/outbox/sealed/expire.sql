-- The SDK expires before every claim, live leases included.
-- $1 rows at most
UPDATE adcp_task_webhook_outbox
SET state = 'expired', lease_token = NULL, lease_expires_at = NULL, updated_at = now()
WHERE id IN (
    SELECT id FROM adcp_task_webhook_outbox
    WHERE state IN ('pending', 'in_flight') AND retry_until <= now()
    ORDER BY id LIMIT $1::bigint FOR UPDATE SKIP LOCKED
)
