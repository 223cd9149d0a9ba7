-- Destinations with something owed or with failures, the worst first.
SELECT jsonb_build_object(
    'lane', lane, 'account_id', nullif(account_id, ''), 'circuit',
    CASE WHEN c.lane IS NULL THEN 'open' WHEN c.probing THEN 'probing' WHEN c.closed_until IS NOT NULL THEN 'closed'
         WHEN c.recovered IS NOT NULL THEN 'recovering' ELSE 'open' END,
    'owed', coalesce(o.owed, 0), 'due', coalesce(o.due, 0), 'oldest', o.oldest::text,
    'closed_until', c.closed_until, 'failures', coalesce(c.failures, 0), 'failing_since', c.failing_since,
    'pauses', c.pauses, 'last_reason', c.last_reason)
FROM (
    SELECT lane, account_id, count(*) AS owed, count(*) FILTER (WHERE coalesce(lease_expires_at, available_at) <= now()) AS due,
           date_trunc('second', now() - min(occurred_at)) AS oldest
    FROM taskbell.outbox WHERE lane IS NOT NULL AND state IN ('pending', 'in_flight') GROUP BY 1, 2
) o
FULL JOIN taskbell.circuit c USING (lane, account_id)
ORDER BY c.closed_until IS NULL, o.owed DESC NULLS LAST, lane, account_id
