-- Seconds until the next row is due, negative when one is overdue; no row when none waits.
SELECT extract(epoch FROM at - now())::float8
FROM (
    (SELECT available_at AS at FROM adcp_task_webhook_outbox WHERE state = 'pending'
     ORDER BY available_at LIMIT 1)
    UNION ALL
    (SELECT min(lease_expires_at) FROM adcp_task_webhook_outbox WHERE state = 'in_flight')
) due
WHERE at IS NOT NULL ORDER BY at LIMIT 1
