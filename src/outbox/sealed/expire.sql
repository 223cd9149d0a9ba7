-- The SDK expires before every claim, live leases included; we with looks that go everywhere, which have their pauses:
-- this reads all that waits. A claim passes over what is past its horizon.
-- $1 rows at most
WITH expired AS (
    SELECT id FROM adcp_task_webhook_outbox
    -- Along the index of what waits, whatever the plan was made for: the one of horizons has all that was ever delivered.
    WHERE state IN ('pending', 'in_flight') AND retry_until + interval '0' <= now()
    ORDER BY available_at, id LIMIT $1::bigint FOR UPDATE SKIP LOCKED
)
UPDATE adcp_task_webhook_outbox t
SET state = 'expired', lease_token = NULL, lease_expires_at = NULL, updated_at = now()
-- An array of one: see native/acknowledge.sql.
FROM expired WHERE t.id = ANY (ARRAY[expired.id])
