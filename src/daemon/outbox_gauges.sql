-- Rows by state, age of the oldest that is due, rows whose horizon is near.
SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'in_flight'),
       count(*) FILTER (WHERE state = 'expired'), count(*) FILTER (WHERE state = 'invalid'),
       coalesce(extract(epoch FROM now() - min(coalesce(lease_expires_at, available_at))
                FILTER (WHERE coalesce(lease_expires_at, available_at) <= now())), 0)::float8,
       count(*) FILTER (WHERE state IN ('pending', 'in_flight') AND retry_until < now() + interval '6 hours')
FROM taskbell.outbox WHERE lane IS NOT NULL
