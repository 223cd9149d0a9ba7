-- The SDK expires before every claim, live leases included.
-- $1 rows at most
WITH expired AS (
    SELECT id FROM adcp_task_webhook_outbox
    -- Not along the index of what is due: a statement planned while the table was empty would read all of that.
    WHERE coalesce(state, '') IN ('pending', 'in_flight') AND retry_until <= now()
    ORDER BY retry_until LIMIT $1::bigint FOR UPDATE SKIP LOCKED
)
UPDATE adcp_task_webhook_outbox t
SET state = 'expired', lease_token = NULL, lease_expires_at = NULL, updated_at = now()
-- An array of one: see native/acknowledge.sql.
FROM expired WHERE t.id = ANY (ARRAY[expired.id])
