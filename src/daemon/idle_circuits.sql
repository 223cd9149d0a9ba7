-- Forgets circuits where nothing is owed any more, an hour after they began to fail: no success
-- will come that would forget them. One that is locked is being settled, and not waited for.
WITH idle AS (
    SELECT c.lane, c.account_id FROM taskbell.circuit c
    WHERE coalesce(c.closed_until <= now(), true) AND c.failing_since < now() - interval '1 hour'
      AND NOT EXISTS (SELECT FROM taskbell.outbox o
                      WHERE o.lane = c.lane AND o.account_id = c.account_id
                        AND o.lane IS NOT NULL AND o.available_at IS NOT NULL)
    FOR UPDATE SKIP LOCKED
)
DELETE FROM taskbell.circuit c USING idle WHERE c.lane = idle.lane AND c.account_id = idle.account_id
