-- Seconds until the next row is due, negative when one is overdue; no row when none waits.
SELECT extract(epoch FROM available_at - now())::float8 FROM taskbell.outbox
WHERE lane IS NOT NULL AND state IN ('pending', 'in_flight')
ORDER BY available_at, id LIMIT 1
