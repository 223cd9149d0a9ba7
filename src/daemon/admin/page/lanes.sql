-- Destinations with something owed or with failures, the worst first; and how many are closed.
SELECT jsonb_build_object(
    'lane', lane, 'account_id', nullif(account_id, ''), 'circuit', x.circuit,
    'owed', coalesce(o.owed, 0), 'due', coalesce(o.due, 0), 'oldest', extract(epoch FROM now() - o.oldest),
    'opens_in', extract(epoch FROM c.closed_until - now()), 'failures', coalesce(c.failures, 0),
    'reason', c.last_reason), count(*) FILTER (WHERE x.circuit IN ('closed', 'probing')) OVER ()
FROM (
    SELECT lane, account_id, count(*) AS owed, count(*) FILTER (WHERE coalesce(lease_expires_at, available_at) <= now()) AS due,
           min(occurred_at) AS oldest
    FROM taskbell.outbox WHERE lane IS NOT NULL AND state IN ('pending', 'in_flight') GROUP BY 1, 2
) o
FULL JOIN taskbell.circuit c USING (lane, account_id)
CROSS JOIN LATERAL (SELECT CASE
    WHEN c.lane IS NULL THEN 'open' WHEN c.probing THEN 'probing' WHEN c.closed_until IS NOT NULL THEN 'closed'
    WHEN c.recovered IS NOT NULL THEN 'recovering' ELSE 'failing' END AS circuit) x
ORDER BY c.closed_until IS NULL, o.owed DESC NULLS LAST, lane, account_id LIMIT 20
