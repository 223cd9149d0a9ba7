-- Rows by state, age of the oldest that is due, rows whose horizon is near. What waits behind a
-- circuit that is closed or recovering is not due: one buyer's endpoint that is down, or takes one
-- at a time, is no daemon that cannot keep up.
SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'in_flight'),
       count(*) FILTER (WHERE state = 'expired'), count(*) FILTER (WHERE state = 'invalid'),
       coalesce(extract(epoch FROM now() - min(coalesce(lease_expires_at, available_at))
                FILTER (WHERE coalesce(lease_expires_at, available_at) <= now()
                        AND c.recovered IS NULL AND coalesce(c.closed_until <= now(), true))), 0)::float8,
       count(*) FILTER (WHERE state IN ('pending', 'in_flight') AND retry_until < now() + interval '6 hours')
FROM taskbell.outbox o LEFT JOIN taskbell.circuit c USING (lane, account_id) WHERE lane IS NOT NULL
