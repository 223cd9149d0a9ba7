-- Webhooks by state, and for how many seconds one could have been sent and was not: since it was due or,
-- where its circuit was closed, since that may be probed. A destination that is coming back gets room
-- step by step, and does not count.
SELECT count(*) FILTER (WHERE o.state = 'pending'), count(*) FILTER (WHERE o.state = 'in_flight'),
       count(*) FILTER (WHERE o.state = 'expired'), count(*) FILTER (WHERE o.state = 'invalid'),
       greatest(coalesce(extract(epoch FROM now() - min(
           greatest(coalesce(o.lease_expires_at, o.available_at), c.closed_until))
           FILTER (WHERE o.available_at IS NOT NULL AND c.recovered IS NULL)), 0), 0)::float8
FROM taskbell.outbox o LEFT JOIN taskbell.circuit c USING (lane, account_id)
WHERE o.lane IS NOT NULL
