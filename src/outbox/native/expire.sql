-- Rows whose horizon has passed become dead letters. An attempt that is still under a live
-- lease began inside the horizon and may yet succeed: it is left to settle.
-- $1 rows at most
WITH over AS (
    SELECT id FROM taskbell.outbox
    WHERE lane IS NOT NULL AND available_at IS NOT NULL AND retry_until <= now()
      AND (lease_expires_at IS NULL OR lease_expires_at <= now())
    LIMIT $1::bigint FOR UPDATE SKIP LOCKED
)
UPDATE taskbell.outbox o
SET state = 'expired', available_at = NULL, lease_token = NULL, lease_expires_at = NULL, last_reason = coalesce(o.last_reason, 'horizon_passed')
WHERE o.id = ANY (ARRAY(SELECT id FROM over))
