-- Destinations that the SDK's outbox owes webhooks to now. $1 at most
SELECT DISTINCT taskbell.lane_of(t.url)
FROM adcp_task_webhook_outbox t
WHERE t.state IN ('pending', 'in_flight') AND taskbell.lane_of(t.url) IS NOT NULL
LIMIT $1::bigint
